//! Slurm's compressed lists.

/// The first host of a list such as `node[001-004,9],other`.
pub(super) fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list);
    while let Some(at) = rest.find(['[', ',']) {
        host += &rest[..at];
        if rest[at..].starts_with(',') {
            rest = "";
            break;
        }
        let (inside, after) = rest[at + 1..].split_once(']')?;
        host += inside.split([',', '-']).next()?;
        rest = after;
    }
    host += rest;
    (!host.is_empty() && !host.contains([']', '[', ' '])).then_some(host)
}

/// The tasks of a node in a list such as `2(x3),1`.
pub(super) fn tasks_of(list: &str, node: usize) -> Option<usize> {
    let mut before = 0usize;
    for part in list.split(',') {
        let (tasks, times) = match part.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        before = before.checked_add(times)?;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}
