//! Where this process stands among those of a job, as its launcher says.
//!
//! | launcher | what it sets |
//! |---|---|
//! | flags | `--nnodes --node-rank --master-addr --master-port` |
//! | torchrun | `RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT` |
//! | Open MPI | `OMPI_COMM_WORLD_RANK`, `_SIZE`, `_LOCAL_RANK`, `_LOCAL_SIZE`; no address |
//! | Slurm | `SLURM_PROCID SLURM_NTASKS SLURM_LOCALID SLURM_STEP_NODELIST`, inside a step |
//! | Kubeflow's TrainJob | `PET_NNODES PET_NODE_RANK PET_MASTER_ADDR PET_MASTER_PORT` |
//! | LeaderWorkerSet | `LWS_GROUP_SIZE LWS_WORKER_INDEX LWS_LEADER_ADDRESS` |
//! | JobSet, an indexed Job | `JOB_COMPLETION_INDEX`, and of the manifest `WORLD_SIZE MASTER_ADDR` |
//!
//! The first that is there holds. torchrun and Open MPI start the processes that are counted, so what surrounds them (a
//! Slurm step, a pod) may say otherwise; all others must agree where several are there.

mod hosts;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use hosts::{first_host, tasks_of};

/// The port where rank 0 listens if nothing else is said: torchrun's and vLLM's.
pub const PORT: u16 = 29_500;

const LOOPBACK: &str = "127.0.0.1";

/// What the flags say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explicit {
    /// Processes, one on each node; 1: this one is alone, whatever the environment says.
    pub nnodes: Option<usize>,
    /// Which of them this is.
    pub node_rank: Option<usize>,
    /// The host of the first.
    pub master_addr: Option<String>,
    /// Where it listens.
    pub master_port: Option<u16>,
}

/// Who started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Flags say it.
    Flags,
    /// torchrun, or someone who sets `RANK` and `WORLD_SIZE` as it does.
    Torchrun,
    /// mpirun.
    OpenMpi,
    /// srun.
    Slurm,
    /// Kubeflow's TrainJob.
    TrainJob,
    /// LeaderWorkerSet.
    LeaderWorkerSet,
    /// JobSet, or an indexed Job.
    JobSet,
}

impl Launcher {
    fn name(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI",
            Self::Slurm => "Slurm",
            Self::TrainJob => "TrainJob",
            Self::LeaderWorkerSet => "LeaderWorkerSet",
            Self::JobSet => "JobSet",
        }
    }
}

/// A process of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// Which process this is, from 0.
    pub rank: usize,
    /// How many there are; at least two.
    pub world_size: usize,
    /// Which of those on this machine, from 0.
    pub local_rank: usize,
    /// How many there are on this machine, as far as is said.
    pub local_size: usize,
    /// Machines.
    pub nodes: usize,
    /// Name or address of the host of rank 0.
    pub host: String,
    /// Where it listens there.
    pub port: u16,
    /// What all processes of the job have in common and those of no other: `LIMA_JOB_TOKEN`, else the launcher's id.
    pub job: String,
    /// Who said so.
    pub launcher: Launcher,
}

/// An environment from which no place can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    /// One half is there.
    #[error("{given} is set without {missing} ({whose})", whose = .launcher.name())]
    Half {
        /// Whose variables.
        launcher: Launcher,
        /// That is there.
        given: String,
        /// That is not.
        missing: String,
    },
    /// No number, or one out of its range.
    #[error("{name} is {value:?}: {what} is needed")]
    Value {
        /// Of the variable or flag.
        name: String,
        /// As it is.
        value: String,
        /// What would do.
        what: String,
    },
    /// Two launchers say different things.
    #[error(
        "{} says that this is process {} of {}, and {} that it is {} of {}: unset what does not hold, or give --nnodes and \
         --node-rank", .first.0.name(), .first.1, .first.2, .second.0.name(), .second.1, .second.2
    )]
    Conflict {
        /// Who, which, of how many.
        first: (Launcher, usize, usize),
        /// The same.
        second: (Launcher, usize, usize),
    },
    /// Nobody says where rank 0 is.
    #[error("on which host rank 0 listens is not said ({whose}): give --master-addr, or set MASTER_ADDR", whose = .0.name())]
    NoAddress(Launcher),
}

/// A place as a launcher says it, without an address.
struct Place {
    launcher: Launcher,
    rank: usize,
    size: usize,
    local: (usize, usize),
    nodes: usize,
    host: Option<String>,
    port: Option<u16>,
    job: Option<String>,
    /// Whether it started exactly these processes, whatever surrounds it.
    inner: bool,
}

impl World {
    /// Reads flags and environment; `None`: this process is alone.
    ///
    /// # Errors
    /// They are incomplete, contradict each other, or are no numbers.
    pub fn read(explicit: &Explicit, environment: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, WorldError> {
        if explicit.nnodes == Some(1) && explicit.node_rank.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let env = Env(&environment);
        let from_flags = flags(explicit, &env)?;
        let is_explicit = from_flags.is_some();
        let mut places: Vec<Place> = from_flags.into_iter().collect();
        if !is_explicit {
            let readers = [torchrun, open_mpi, slurm, train_job, leader_worker_set, job_set];
            for read in readers {
                places.extend(read(&env)?);
            }
        }
        let mut places = places.into_iter();
        let Some(place) = places.next() else { return Ok(None) };
        if let Some(other) = places.find(|p| !place.inner && (p.rank, p.size) != (place.rank, place.size)) {
            let said = |p: &Place| (p.launcher, p.rank, p.size);
            return Err(WorldError::Conflict { first: said(&place), second: said(&other) });
        }
        if place.size == 1 {
            return Ok(None);
        }
        let host = explicit.master_addr.clone().or(place.host).or_else(|| env.text("MASTER_ADDR"));
        let is_one_machine = place.local.1 == place.size;
        let host = host.or_else(|| is_one_machine.then(|| LOOPBACK.to_owned()));
        Ok(Some(Self {
            rank: place.rank,
            world_size: place.size,
            local_rank: place.local.0,
            local_size: place.local.1,
            nodes: place.nodes,
            host: host.ok_or(WorldError::NoAddress(place.launcher))?,
            port: explicit.master_port.or(place.port).unwrap_or(PORT),
            job: env.text("LIMA_JOB_TOKEN").or(place.job).unwrap_or_else(|| "lima".to_owned()),
            launcher: place.launcher,
        }))
    }
}

/// Variables; empty ones count as not set.
struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>, WorldError> {
        self.text(name).map(|text| number(name, &text)).transpose()
    }

    fn port(&self, name: &str) -> Result<Option<u16>, WorldError> {
        let parse = |text: String| match text.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(wrong(name, &text, "a port")),
        };
        self.text(name).map(parse).transpose()
    }

    /// Rank and size, both or neither; the rank below the size.
    fn pair(&self, launcher: Launcher, rank: &str, size: &str) -> Result<Option<(usize, usize)>, WorldError> {
        let half = |given: &str, missing: &str| {
            Err(WorldError::Half { launcher, given: given.to_owned(), missing: missing.to_owned() })
        };
        match (self.number(rank)?, self.number(size)?) {
            (None, None) => Ok(None),
            (Some(_), None) => half(rank, size),
            (None, Some(_)) => half(size, rank),
            (Some(at), Some(of)) => within(rank, at, size, of).map(Some),
        }
    }

    /// Which process of the machine, of how many; where that is not said, the only one.
    fn local(&self, rank: &str, size: &str, of: usize) -> Result<(usize, usize), WorldError> {
        let Some(at) = self.number(rank)? else { return Ok((0, 1)) };
        let here = self.number(size)?.unwrap_or(at + 1).min(of);
        within(rank, at, size, here)
    }
}

fn number(name: &str, text: &str) -> Result<usize, WorldError> {
    text.parse().map_err(|_| wrong(name, text, "a number"))
}

fn wrong(name: &str, value: &str, what: &str) -> WorldError {
    WorldError::Value { name: name.to_owned(), value: value.to_owned(), what: what.to_owned() }
}

/// A rank below a size, both plausible.
fn within(rank: &str, at: usize, size: &str, of: usize) -> Result<(usize, usize), WorldError> {
    const MOST: usize = 4096;
    if of == 0 || of > MOST {
        return Err(wrong(size, &of.to_string(), &format!("a number from 1 to {MOST}")));
    }
    match at < of {
        true => Ok((at, of)),
        false => Err(wrong(rank, &at.to_string(), &format!("a number below {size}, which is {of},"))),
    }
}

fn flags(explicit: &Explicit, env: &Env<'_>) -> Result<Option<Place>, WorldError> {
    let half = |given: &str, missing: &str| {
        Err(WorldError::Half { launcher: Launcher::Flags, given: given.to_owned(), missing: missing.to_owned() })
    };
    let (rank, size) = match (explicit.node_rank, explicit.nnodes) {
        (None, None) => return Ok(None),
        (Some(_), None) => return half("--node-rank", "--nnodes"),
        (Some(rank), Some(size)) => within("--node-rank", rank, "--nnodes", size)?,
        // In a Job the index is the rank, and nothing but the manifest knows how many there are.
        (None, Some(size)) => match env.number("JOB_COMPLETION_INDEX")? {
            Some(rank) => within("JOB_COMPLETION_INDEX", rank, "--nnodes", size)?,
            None => return half("--nnodes", "--node-rank"),
        },
    };
    let port = env.port("MASTER_PORT")?;
    Ok(Some(Place::a_node(Launcher::Flags, rank, size).at(None, port)))
}

impl Place {
    /// One process on each machine.
    fn a_node(launcher: Launcher, rank: usize, size: usize) -> Self {
        let (local, nodes) = ((0, 1), size);
        Self { launcher, rank, size, local, nodes, host: None, port: None, job: None, inner: false }
    }

    fn at(self, host: Option<String>, port: Option<u16>) -> Self {
        Self { host, port, ..self }
    }

    fn of_job(self, job: Option<String>) -> Self {
        Self { job, ..self }
    }
}

fn torchrun(env: &Env<'_>) -> Result<Option<Place>, WorldError> {
    // `WORLD_SIZE` beside the index of a Job is the manifest's: see `job_set`.
    if env.text("RANK").is_none() && env.text("JOB_COMPLETION_INDEX").is_some() {
        return Ok(None);
    }
    let Some((rank, size)) = env.pair(Launcher::Torchrun, "RANK", "WORLD_SIZE")? else { return Ok(None) };
    let local = env.local("LOCAL_RANK", "LOCAL_WORLD_SIZE", size)?;
    let id = env.text("TORCHELASTIC_RUN_ID");
    let port = env.port("MASTER_PORT")?.map(|port| match env.text("TORCHELASTIC_USE_AGENT_STORE").as_deref() {
        // torchrun itself listens there.
        Some("True" | "true" | "1") => port.checked_add(1).unwrap_or(port - 1),
        _ => port,
    });
    // The group that is started again is another one: a process that is left of the one before must not join it.
    let again = env.text("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
    Ok(Some(Place {
        launcher: Launcher::Torchrun,
        rank,
        size,
        local,
        nodes: size.div_ceil(local.1),
        host: env.text("MASTER_ADDR"),
        port,
        inner: id.is_some(),
        job: id.map(|id| format!("torchrun {id} {again}")),
    }))
}

fn open_mpi(env: &Env<'_>) -> Result<Option<Place>, WorldError> {
    let [rank, size] = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"];
    let Some((rank, size)) = env.pair(Launcher::OpenMpi, rank, size)? else { return Ok(None) };
    let local = env.local("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", size)?;
    let id = env.text("PMIX_NAMESPACE").or_else(|| env.text("OMPI_MCA_ess_base_jobid"));
    Ok(Some(Place {
        launcher: Launcher::OpenMpi,
        rank,
        size,
        local,
        nodes: size.div_ceil(local.1),
        host: env.text("MASTER_ADDR"),
        port: env.port("MASTER_PORT")?,
        job: id.map(|id| format!("mpirun {id}")),
        inner: true,
    }))
}

fn slurm(env: &Env<'_>) -> Result<Option<Place>, WorldError> {
    // A batch script has SLURM_PROCID and SLURM_NTASKS too, and is one process alone; only steps have an id.
    let Some(step) = env.text("SLURM_STEP_ID") else { return Ok(None) };
    let Some((rank, size)) = env.pair(Launcher::Slurm, "SLURM_PROCID", "SLURM_NTASKS")? else { return Ok(None) };
    let node = env.number("SLURM_NODEID")?.unwrap_or(0);
    let first = |names: &[&str]| names.iter().find_map(|name| Some((name.to_string(), env.text(name)?)));
    let tasks = first(&["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"]);
    let here = tasks.and_then(|(_, list)| tasks_of(&list, node));
    let at = env.number("SLURM_LOCALID")?.unwrap_or(0);
    let local = within("SLURM_LOCALID", at, "SLURM_TASKS_PER_NODE", here.unwrap_or(at + 1).min(size))?;
    let nodes = first(&["SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"]);
    let nodes = nodes.map(|(name, text)| number(&name, &text)).transpose()?.unwrap_or(1).max(1);
    let list = first(&["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]);
    let host = match (env.text("MASTER_ADDR"), list) {
        (Some(host), _) => Some(host),
        (None, Some(_)) if nodes == 1 => Some(LOOPBACK.to_owned()),
        (None, Some((name, list))) => Some(first_host(&list).ok_or_else(|| wrong(&name, &list, "a list of hosts"))?),
        (None, None) => None,
    };
    let job = env.text("SLURM_JOB_ID");
    // Jobs share machines, so each has a port of its own: one that all its tasks know.
    let own = job.as_ref().and_then(|id| id.parse::<u64>().ok()).map(|id| 20_000 + (id % 10_000) as u16);
    let port = env.port("MASTER_PORT")?.or(own);
    let job = job.map(|id| format!("slurm {id}.{step}"));
    Ok(Some(Place { launcher: Launcher::Slurm, rank, size, local, nodes, host, port, job, inner: false }))
}

fn train_job(env: &Env<'_>) -> Result<Option<Place>, WorldError> {
    let [rank, size] = ["PET_NODE_RANK", "PET_NNODES"];
    // A range is torchrun's elastic form.
    let nodes = env.text(size).map(|text| match text.split_once(':') {
        Some((least, most)) if least == most => Ok(most.to_owned()),
        Some(_) => Err(wrong(size, &text, "a fixed number: ranks do not come and go,")),
        None => Ok(text),
    });
    let nodes = nodes.transpose()?;
    let read = |name: &str| if name == size { nodes.clone() } else { env.text(name) };
    let Some((rank, size)) = Env(&read).pair(Launcher::TrainJob, rank, size)? else { return Ok(None) };
    let port = env.port("PET_MASTER_PORT")?;
    Ok(Some(Place::a_node(Launcher::TrainJob, rank, size).at(env.text("PET_MASTER_ADDR"), port)))
}

fn leader_worker_set(env: &Env<'_>) -> Result<Option<Place>, WorldError> {
    let launcher = Launcher::LeaderWorkerSet;
    let pair = env.pair(launcher, "LWS_WORKER_INDEX", "LWS_GROUP_SIZE")?;
    let leader = env.text("LWS_LEADER_ADDRESS");
    let Some((rank, size)) = pair else {
        let missing =
            || WorldError::Half { launcher, given: "LWS_LEADER_ADDRESS".into(), missing: "LWS_WORKER_INDEX".into() };
        return leader.map_or(Ok(None), |_| Err(missing()));
    };
    // The leader's name has the group's index in it.
    let job = leader.as_ref().map(|leader| format!("lws {leader}"));
    Ok(Some(Place::a_node(launcher, rank, size).at(leader, env.port("MASTER_PORT")?).of_job(job)))
}

fn job_set(env: &Env<'_>) -> Result<Option<Place>, WorldError> {
    let Some(rank) = env.number("JOB_COMPLETION_INDEX")? else { return Ok(None) };
    let size = match env.number("WORLD_SIZE")? {
        Some(size) => size,
        // Someone else counts, or an index of work that has nothing to do with the others.
        None if env.text("MASTER_ADDR").is_none() || env.text("PET_NNODES").is_some() => return Ok(None),
        None => {
            return Err(WorldError::Half {
                launcher: Launcher::JobSet,
                given: "MASTER_ADDR".into(),
                missing: "WORLD_SIZE".into(),
            });
        }
    };
    let (rank, size) = within("JOB_COMPLETION_INDEX", rank, "WORLD_SIZE", size)?;
    let job = env.text("JOBSET_NAME").map(|name| format!("jobset {name}"));
    let port = env.port("MASTER_PORT")?;
    Ok(Some(Place::a_node(Launcher::JobSet, rank, size).at(env.text("MASTER_ADDR"), port).of_job(job)))
}
