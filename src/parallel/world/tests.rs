//! Every launcher's variables, as they set them.

use super::*;

fn read(explicit: &Explicit, variables: &str) -> Result<Option<World>, WorldError> {
    let find = |name: &str| {
        let mut all = variables.split_whitespace().filter_map(|pair| pair.split_once('='));
        all.find(|(other, _)| *other == name).map(|(_, value)| value.to_owned())
    };
    World::read(explicit, find)
}

fn of(variables: &str) -> Result<Option<World>, WorldError> {
    read(&Explicit::default(), variables)
}

/// Launcher, rank of size, local rank of local size, nodes, where, job.
fn line(world: &World) -> String {
    let World { rank, world_size, local_rank, local_size, nodes, host, port, job, launcher } = world;
    format!("{launcher:?} {rank}/{world_size} {local_rank}/{local_size} {nodes} {host}:{port} {job}")
}

const TORCHRUN: &str = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 GROUP_RANK=1 MASTER_ADDR=head MASTER_PORT=29500 \
                        TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=2 TORCHELASTIC_USE_AGENT_STORE=True";
const MPI: &str = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
                   PMIX_NAMESPACE=77";
const SLURM: &str = "SLURM_STEP_ID=0 SLURM_JOB_ID=4711 SLURM_PROCID=5 SLURM_NTASKS=6 SLURM_LOCALID=1 SLURM_NODEID=2 \
                     SLURM_NNODES=3 SLURM_STEP_TASKS_PER_NODE=2(x3) SLURM_STEP_NODELIST=node[07-09]";
const TRAIN_JOB: &str = "PET_NNODES=4 PET_NPROC_PER_NODE=auto PET_NODE_RANK=2 PET_MASTER_ADDR=job-node-0-0.job \
                         PET_MASTER_PORT=29400 JOB_COMPLETION_INDEX=2";
const LWS: &str = "LWS_GROUP_SIZE=2 LWS_WORKER_INDEX=1 LWS_LEADER_ADDRESS=lima-0.lima.default";
const JOBSET: &str = "JOB_COMPLETION_INDEX=1 WORLD_SIZE=3 MASTER_ADDR=train-node-0-0.train JOBSET_NAME=train";

#[test]
fn every_launcher_is_read() {
    for (variables, expected) in [
        // The port after the one where torchrun itself listens.
        (TORCHRUN, "Torchrun 5/8 1/4 2 head:29501 torchrun none 2"),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=7", "Torchrun 1/2 0/1 2 h:7 lima"),
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", "Torchrun 1/2 1/2 1 127.0.0.1:29500 lima"),
        (&format!("{MPI} MASTER_ADDR=h1"), "OpenMpi 3/4 1/2 2 h1:29500 mpirun 77"),
        (
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=2",
            "OpenMpi 0/2 0/2 1 127.0.0.1:29500 lima",
        ),
        (SLURM, "Slurm 5/6 1/2 3 node07:24711 slurm 4711.0"),
        (&format!("{SLURM} MASTER_ADDR=n MASTER_PORT=9 LIMA_JOB_TOKEN=mine"), "Slurm 5/6 1/2 3 n:9 mine"),
        (TRAIN_JOB, "TrainJob 2/4 0/1 4 job-node-0-0.job:29400 lima"),
        (&TRAIN_JOB.replace("PET_NNODES=4", "PET_NNODES=4:4"), "TrainJob 2/4 0/1 4 job-node-0-0.job:29400 lima"),
        (LWS, "LeaderWorkerSet 1/2 0/1 2 lima-0.lima.default:29500 lws lima-0.lima.default"),
        (JOBSET, "JobSet 1/3 0/1 3 train-node-0-0.train:29500 jobset train"),
    ] {
        assert_eq!(of(variables).unwrap().map(|w| line(&w)).as_deref(), Some(expected), "{variables}");
    }
}

/// Processes that stand alone: without any of it, in a batch script outside of srun, as one of one.
#[test]
fn alone() {
    for variables in [
        "",
        "RANK= WORLD_SIZE=",
        "MASTER_ADDR=h MASTER_PORT=1",
        "SLURM_JOB_ID=1 SLURM_PROCID=0 SLURM_NTASKS=8",
        "SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=1",
        "RANK=0 WORLD_SIZE=1",
        "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1",
        "JOB_COMPLETION_INDEX=3",
        "LWS_GROUP_SIZE=1 LWS_WORKER_INDEX=0 LWS_LEADER_ADDRESS=x",
    ] {
        assert_eq!(of(variables), Ok(None), "{variables}");
    }
    let one = Explicit { nnodes: Some(1), ..Explicit::default() };
    assert_eq!(read(&one, TORCHRUN), Ok(None));
}

/// torchrun and mpirun may run inside of others; flags go before all.
#[test]
fn the_inner_launcher_holds() {
    for around in [SLURM, TRAIN_JOB, LWS, MPI] {
        let world = of(&format!("{TORCHRUN} {around}")).unwrap().unwrap();
        assert_eq!((world.launcher, world.rank, world.world_size), (Launcher::Torchrun, 5, 8));
    }
    let world = of(&format!("{MPI} {SLURM} MASTER_ADDR=h")).unwrap().unwrap();
    assert_eq!((world.launcher, world.rank, world.world_size), (Launcher::OpenMpi, 3, 4));
    let explicit =
        Explicit { nnodes: Some(2), node_rank: Some(1), master_addr: Some("head".into()), master_port: Some(1234) };
    for around in ["", TORCHRUN, MPI, SLURM, TRAIN_JOB, LWS, JOBSET] {
        let world = read(&explicit, around).unwrap().unwrap();
        assert_eq!(line(&world), "Flags 1/2 0/1 2 head:1234 lima", "{around}");
    }
    // An address alone leaves the count to the launcher.
    let address = Explicit { master_addr: Some("x".into()), master_port: Some(5), ..Explicit::default() };
    assert_eq!(line(&read(&address, MPI).unwrap().unwrap()), "OpenMpi 3/4 1/2 2 x:5 mpirun 77");
    let nodes = Explicit { nnodes: Some(3), ..Explicit::default() };
    let world = read(&nodes, "JOB_COMPLETION_INDEX=2 MASTER_ADDR=a MASTER_PORT=6").unwrap().unwrap();
    assert_eq!(line(&world), "Flags 2/3 0/1 3 a:6 lima");
}

#[test]
fn what_is_wrong_is_said() {
    for (variables, expected) in [
        ("RANK=0", "RANK is set without WORLD_SIZE (torchrun)"),
        ("WORLD_SIZE=2", "WORLD_SIZE is set without RANK (torchrun)"),
        ("RANK=2 WORLD_SIZE=2", "RANK is \"2\": a number below WORLD_SIZE, which is 2, is needed"),
        ("RANK=a WORLD_SIZE=2", "RANK is \"a\": a number is needed"),
        ("RANK=-1 WORLD_SIZE=2", "RANK is \"-1\": a number is needed"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE is \"0\": a number from 1 to 4096 is needed"),
        (
            "RANK=0 WORLD_SIZE=2",
            "on which host rank 0 listens is not said (torchrun): give --master-addr, or set MASTER_ADDR",
        ),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=99999", "MASTER_PORT is \"99999\": a port is needed"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=0", "MASTER_PORT is \"0\": a port is needed"),
        ("OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_SIZE is set without OMPI_COMM_WORLD_RANK (Open MPI)"),
        (MPI, "on which host rank 0 listens is not said (Open MPI): give --master-addr, or set MASTER_ADDR"),
        (
            "SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_NNODES=2 SLURM_STEP_NODELIST=n[1",
            "SLURM_STEP_NODELIST is \"n[1\": a list of hosts is needed",
        ),
        ("SLURM_STEP_ID=0 SLURM_PROCID=0", "SLURM_PROCID is set without SLURM_NTASKS (Slurm)"),
        ("PET_NNODES=2", "PET_NNODES is set without PET_NODE_RANK (TrainJob)"),
        (
            "PET_NNODES=1:4 PET_NODE_RANK=0",
            "PET_NNODES is \"1:4\": a fixed number: ranks do not come and go, is needed",
        ),
        ("LWS_GROUP_SIZE=2", "LWS_GROUP_SIZE is set without LWS_WORKER_INDEX (LeaderWorkerSet)"),
        ("LWS_LEADER_ADDRESS=x", "LWS_LEADER_ADDRESS is set without LWS_WORKER_INDEX (LeaderWorkerSet)"),
        ("JOB_COMPLETION_INDEX=0 MASTER_ADDR=h", "MASTER_ADDR is set without WORLD_SIZE (JobSet)"),
        (
            "RANK=0 WORLD_SIZE=2 MASTER_ADDR=h LWS_GROUP_SIZE=4 LWS_WORKER_INDEX=3",
            "torchrun says that this is process 0 of 2, and LeaderWorkerSet that it is 3 of 4: unset what does not hold, or \
             give --nnodes and --node-rank",
        ),
    ] {
        assert_eq!(of(variables).unwrap_err().to_string(), expected, "{variables}");
    }
    let explicit = |nnodes, node_rank| Explicit { nnodes, node_rank, ..Explicit::default() };
    for (flags, expected) in [
        (explicit(None, Some(0)), "--node-rank is set without --nnodes (flags)"),
        (explicit(Some(2), None), "--nnodes is set without --node-rank (flags)"),
        (explicit(Some(2), Some(2)), "--node-rank is \"2\": a number below --nnodes, which is 2, is needed"),
        (explicit(Some(1), Some(1)), "--node-rank is \"1\": a number below --nnodes, which is 1, is needed"),
        (
            explicit(Some(2), Some(0)),
            "on which host rank 0 listens is not said (flags): give --master-addr, or set MASTER_ADDR",
        ),
    ] {
        assert_eq!(read(&flags, "").unwrap_err().to_string(), expected);
    }
}

#[test]
fn lists_of_slurm() {
    for (list, expected) in [
        ("n1", Some("n1")),
        ("n1,n2", Some("n1")),
        ("node[001-004,9],other", Some("node001")),
        ("rack[2-3]n[07,9]", Some("rack2n07")),
        ("a[1]b,c", Some("a1b")),
        ("", None),
        ("n[1", None),
        (",n", None),
    ] {
        assert_eq!(first_host(list).as_deref(), expected, "{list}");
    }
    let tasks = |list| (0..5).map(|node| tasks_of(list, node)).collect::<Vec<_>>();
    assert_eq!(tasks("2(x3),1"), [Some(2), Some(2), Some(2), Some(1), None]);
    assert_eq!(tasks("4"), [Some(4), None, None, None, None]);
    assert_eq!(tasks("x"), [None; 5]);
    assert_eq!(tasks("2(x"), [None; 5]);
}
