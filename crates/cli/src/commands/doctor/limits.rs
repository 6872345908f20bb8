//! What the kernel and the shell allow, against what many instances need.

use super::{Finding, Level, read};

/// As many instances as one host is meant for.
const INSTANCES: u64 = 500;
/// Namespaces of one kind: each instance has one, those that end go later, and others want some.
const NAMESPACES_MIN: u64 = 2 * INSTANCES;
/// Open files of the server: what it keeps of each instance, and connections.
const FILES_MIN: u64 = 1024 + 16 * INSTANCES;
/// Process numbers: pid 1, the program and some threads of each.
const PROCESSES_MIN: u64 = 100 * INSTANCES;
/// What Debian's kernel starts with: the number is for each user, and each instance is users of its own.
const WATCHERS_MIN: u64 = 128;
const KEYS_MIN: u64 = 200;
const KINDS: [&str; 7] = ["user", "pid", "mnt", "net", "uts", "ipc", "cgroup"];

pub(super) fn examine() -> Vec<Finding> {
    let namespaces = KINDS.map(|kind| (kind, read(&format!("/proc/sys/user/max_{kind}_namespaces"))));
    vec![
        namespaces_of(&namespaces),
        open_files(kiln_sys::host::open_files_max()),
        processes(&read("/proc/sys/kernel/pid_max")),
        small(&read("/proc/sys/fs/inotify/max_user_instances"), &read("/proc/sys/kernel/keys/maxkeys")),
    ]
}

fn namespaces_of(found: &[(&str, String)]) -> Finding {
    const NAME: &str = "namespaces";
    let numbers: Vec<(&str, Option<u64>)> =
        found.iter().map(|(kind, text)| (*kind, text.trim().parse().ok())).collect();
    let list = |wanted: &dyn Fn(Option<u64>) -> bool| -> Vec<&str> {
        numbers.iter().filter(|(_, number)| wanted(*number)).map(|(kind, _)| *kind).collect()
    };
    let command = |kinds: &[&str]| -> String {
        let settings: Vec<String> =
            kinds.iter().map(|kind| format!("user.max_{kind}_namespaces=15000")).collect();
        format!("`sysctl -w {}`, and a file in /etc/sysctl.d to keep it", settings.join(" "))
    };
    let unknown = list(&|number| number.is_none());
    if !unknown.is_empty() {
        let found = format!("the kernel has no {} namespaces", unknown.join(", "));
        return Finding::bad(NAME, Level::Missing, found, "use a kernel that has them, as Debian's");
    }
    let off = list(&|number| number == Some(0));
    if !off.is_empty() {
        let found = format!("switched off: {}", off.join(", "));
        return Finding::bad(NAME, Level::Missing, found, &command(&off));
    }
    let few = list(&|number| number.is_some_and(|number| number < NAMESPACES_MIN));
    if !few.is_empty() {
        let found = format!("fewer than {NAMESPACES_MIN} allowed: {}", few.join(", "));
        return Finding::bad(NAME, Level::Warning, found, &command(&few));
    }
    let least = numbers.iter().filter_map(|(_, number)| *number).min().unwrap_or(0);
    Finding::ok(NAME, format!("{least} or more of each kind allowed"))
}

fn open_files(hard: Option<u64>) -> Finding {
    const NAME: &str = "open files";
    match hard {
        None => Finding::ok(NAME, "no limit"),
        Some(hard) if hard >= FILES_MIN => Finding::ok(NAME, format!("up to {hard}")),
        Some(hard) => {
            let fix =
                "`LimitNOFILE=1048576` in the unit, or `ulimit -Hn 1048576` in the shell that starts it";
            let found = format!("up to {hard}, {INSTANCES} instances need {FILES_MIN}");
            Finding::bad(NAME, Level::Warning, found, fix)
        }
    }
}

fn processes(text: &str) -> Finding {
    const NAME: &str = "process numbers";
    match text.trim().parse::<u64>() {
        Ok(number) if number >= PROCESSES_MIN => Finding::ok(NAME, format!("up to {number}")),
        other => {
            let found = format!("up to {}, {INSTANCES} instances need {PROCESSES_MIN}", other.unwrap_or(0));
            let fix = "`sysctl -w kernel.pid_max=4194304`, and a file in /etc/sysctl.d to keep it";
            Finding::bad(NAME, Level::Warning, found, fix)
        }
    }
}

fn small(watchers: &str, keys: &str) -> Finding {
    const NAME: &str = "limits of each user";
    // A kernel without keys has no limit of them.
    let number = |text: &str, otherwise| text.trim().parse::<u64>().unwrap_or(otherwise);
    let (watchers, keys) = (number(watchers, 0), number(keys, KEYS_MIN));
    let found = format!("{watchers} inotify instances, {keys} keys");
    if watchers >= WATCHERS_MIN && keys >= KEYS_MIN {
        return Finding::ok(NAME, found);
    }
    let fix =
        format!("`sysctl -w fs.inotify.max_user_instances={WATCHERS_MIN} kernel.keys.maxkeys={KEYS_MIN}`");
    Finding::bad(NAME, Level::Warning, found, &fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_off_and_nothing_is_unknown() {
        let all = |net: &str| {
            KINDS.map(|kind| (kind, if kind == "net" { net.to_owned() } else { "90000\n".into() }))
        };
        let cases = [
            ("90000\n", Level::Ok, "90000 or more"),
            ("1000\n", Level::Ok, "1000 or more"),
            ("999\n", Level::Warning, "fewer than 1000 allowed: net"),
            ("0\n", Level::Missing, "switched off: net"),
            ("", Level::Missing, "no net namespaces"),
        ];
        for (net, level, words) in cases {
            let finding = namespaces_of(&all(net));
            assert!(finding.level == level && finding.found.contains(words), "{finding:?}");
        }
        let fix = namespaces_of(&all("0")).fix.unwrap();
        assert!(fix.starts_with("`sysctl -w user.max_net_namespaces=15000`"), "{fix}");
    }

    #[test]
    fn limits_are_held_against_500_instances() {
        let levels = [None, Some(20_000), Some(1024)].map(|hard| open_files(hard).level);
        assert_eq!(levels, [Level::Ok, Level::Ok, Level::Warning]);
        let levels = ["4194304\n", "32768\n", ""].map(|text| processes(text).level);
        assert_eq!(levels, [Level::Ok, Level::Warning, Level::Warning]);
        let levels =
            [("128", "200"), ("128", ""), ("64", "200"), ("", "200")].map(|(w, k)| small(w, k).level);
        assert_eq!(levels, [Level::Ok, Level::Ok, Level::Warning, Level::Warning]);
    }
}
