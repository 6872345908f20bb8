//! `/etc/passwd`, `/etc/group` and `/etc/shadow`.

use super::{Root, SlimError};
use crate::debian::deb::Deb;
use std::collections::{BTreeMap, BTreeSet};

/// The users of Debian's base-passwd, which has to be the same on every system (policy 9.2.2): name, uid, gid, home, shell.
const PASSWD: &str = "\
root:*:0:0:root:/root:/bin/bash
daemon:*:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:*:2:2:bin:/bin:/usr/sbin/nologin
sys:*:3:3:sys:/dev:/usr/sbin/nologin
sync:*:4:65534:sync:/bin:/bin/sync
games:*:5:60:games:/usr/games:/usr/sbin/nologin
man:*:6:12:man:/var/cache/man:/usr/sbin/nologin
lp:*:7:7:lp:/var/spool/lpd:/usr/sbin/nologin
mail:*:8:8:mail:/var/mail:/usr/sbin/nologin
news:*:9:9:news:/var/spool/news:/usr/sbin/nologin
uucp:*:10:10:uucp:/var/spool/uucp:/usr/sbin/nologin
proxy:*:13:13:proxy:/bin:/usr/sbin/nologin
www-data:*:33:33:www-data:/var/www:/usr/sbin/nologin
backup:*:34:34:backup:/var/backups:/usr/sbin/nologin
list:*:38:38:Mailing List Manager:/var/list:/usr/sbin/nologin
irc:*:39:39:ircd:/run/ircd:/usr/sbin/nologin
_apt:*:42:65534::/nonexistent:/usr/sbin/nologin
nobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";
/// Its groups.
const GROUP: &[(&str, u32)] = &[
    ("root", 0),
    ("daemon", 1),
    ("bin", 2),
    ("sys", 3),
    ("adm", 4),
    ("tty", 5),
    ("disk", 6),
    ("lp", 7),
    ("mail", 8),
    ("news", 9),
    ("uucp", 10),
    ("man", 12),
    ("proxy", 13),
    ("kmem", 15),
    ("dialout", 20),
    ("fax", 21),
    ("voice", 22),
    ("cdrom", 24),
    ("floppy", 25),
    ("tape", 26),
    ("sudo", 27),
    ("audio", 29),
    ("dip", 30),
    ("www-data", 33),
    ("backup", 34),
    ("operator", 37),
    ("list", 38),
    ("irc", 39),
    ("src", 40),
    ("shadow", 42),
    ("utmp", 43),
    ("video", 44),
    ("sasl", 45),
    ("plugdev", 46),
    ("staff", 50),
    ("games", 60),
    ("users", 100),
    ("nogroup", 65534),
];
/// Users that the scripts of these packages make, with ids of kiln's choice: package, user, id, home, shell.
const KNOWN: &[(&str, &str, u32, &str, &str)] = &[
    ("redis-tools", "redis", 201, "/var/lib/redis", NOLOGIN),
    ("postgresql-common", "postgres", 202, "/var/lib/postgresql", "/bin/bash"),
    ("mariadb-server", "mysql", 203, "/nonexistent", "/bin/false"),
    ("memcached", "memcache", 204, "/nonexistent", "/bin/false"),
    ("haproxy", "haproxy", 205, "/var/lib/haproxy", NOLOGIN),
    ("openssh-server", "sshd", 206, "/run/sshd", NOLOGIN),
    ("dbus", "messagebus", 207, "/nonexistent", NOLOGIN),
    ("rabbitmq-server", "rabbitmq", 208, "/var/lib/rabbitmq", NOLOGIN),
    ("varnish", "varnish", 209, "/nonexistent", NOLOGIN),
    ("mosquitto", "mosquitto", 210, "/var/lib/mosquitto", NOLOGIN),
    ("prometheus", "prometheus", 211, "/var/lib/prometheus", NOLOGIN),
    ("etcd-server", "etcd", 212, "/var/lib/etcd", NOLOGIN),
];
const NOLOGIN: &str = "/usr/sbin/nologin";
/// The first id that systemd's `sysusers` would give; it counts down, and so does this.
const SYSTEM_ID_LAST: u32 = 999;
/// Bytes of a name, as `useradd` allows.
const NAME_BYTES_MAX: usize = 32;

struct User {
    name: String,
    uid: u32,
    gid: u32,
    comment: String,
    home: String,
    shell: String,
}

#[derive(Default)]
struct Users {
    users: Vec<User>,
    groups: Vec<(String, u32, BTreeSet<String>)>,
}

/// Makes the files; answers with the users as (uid, gid) by name.
pub(super) fn make(root: &mut Root, debs: &[Deb]) -> Result<BTreeMap<String, (u32, u32)>, SlimError> {
    let mut users = Users::debian();
    for (package, name, id, home, shell) in KNOWN {
        if debs.iter().any(|deb| deb.name() == *package) {
            users.add(name, *id, name, home, shell);
        }
    }
    // In the order of their names, later ones over earlier ones, as systemd reads them.
    for path in root.list("usr/lib/sysusers.d") {
        if path.ends_with(b".conf") {
            let conf = root.read(&String::from_utf8_lossy(&path)).unwrap_or_default();
            let conf = String::from_utf8_lossy(conf).into_owned();
            conf.lines().for_each(|line| users.sysusers(line));
        }
    }
    let line = |u: &User| format!("{}:x:{}:{}:{}:{}:{}\n", u.name, u.uid, u.gid, u.comment, u.home, u.shell);
    let passwd: String = users.users.iter().map(line).collect();
    let shadow: String = users.users.iter().map(|u| format!("{}:*:19000:0:99999:7:::\n", u.name)).collect();
    let members = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(",");
    let groups = users.groups.iter().map(|(name, gid, names)| format!("{name}:x:{gid}:{}\n", members(names)));
    let groups: String = groups.collect();
    root.file("etc/passwd", passwd.as_bytes(), 0o644)?;
    root.file("etc/group", groups.as_bytes(), 0o644)?;
    root.file("etc/shadow", shadow.as_bytes(), 0o640)?;
    if let Some(node) = root.tree.get_mut(b"etc/shadow") {
        node.gid = 42;
    }
    Ok(users.users.into_iter().map(|user| (user.name, (user.uid, user.gid))).collect())
}

impl Users {
    fn debian() -> Self {
        let mut users = Self::default();
        for line in PASSWD.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, comment, home, shell] = fields[..]
                && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
            {
                let [name, comment, home, shell] = [name, comment, home, shell].map(str::to_owned);
                users.users.push(User { name, uid, gid, comment, home, shell });
            }
        }
        users.groups.extend(GROUP.iter().map(|(name, gid)| ((*name).to_owned(), *gid, BTreeSet::new())));
        users
    }

    /// Adds a user with a group of its name and id, unless there is one.
    fn add(&mut self, name: &str, id: u32, comment: &str, home: &str, shell: &str) {
        let gid = self.group(name, id);
        if self.users.iter().all(|user| user.name != name) {
            let [name, comment, home, shell] = [name, comment, home, shell].map(str::to_owned);
            self.users.push(User { name, uid: id, gid, comment, home, shell });
        }
    }

    fn group(&mut self, name: &str, id: u32) -> u32 {
        if let Some((_, gid, _)) = self.groups.iter().find(|(group, ..)| group == name) {
            return *gid;
        }
        self.groups.push((name.to_owned(), id, BTreeSet::new()));
        id
    }

    /// The highest system id that nobody has.
    fn free_id(&self) -> u32 {
        let taken = |id| self.users.iter().any(|u| u.uid == id) || self.groups.iter().any(|g| g.1 == id);
        (1..=SYSTEM_ID_LAST).rev().find(|id| !taken(*id)).unwrap_or(SYSTEM_ID_LAST)
    }

    /// One line of sysusers.d(5): `u NAME ID "COMMENT" HOME SHELL`, `g NAME ID`, `m USER GROUP`. What it does not
    /// understand it leaves out.
    fn sysusers(&mut self, line: &str) {
        let words = words(line);
        let word = |n: usize| words.get(n).map(String::as_str).filter(|word| *word != "-");
        let (Some(kind), Some(name)) = (word(0), word(1).filter(|name| is_name(name))) else { return };
        let (id, group) = match word(2).map(|id| id.split_once(':').unwrap_or((id, ""))) {
            Some((id, group)) => (id.parse().ok().filter(|id| *id < 65_535), group.to_owned()),
            None => (None, String::new()),
        };
        let id = id.unwrap_or_else(|| self.free_id());
        match kind.trim_end_matches('!') {
            "u" => {
                let text = |n, default: &'static str| {
                    let plain = |text: &&str| !text.contains([':', '\n']) && text.len() < 256;
                    word(n).filter(plain).unwrap_or(default).to_owned()
                };
                let (comment, home, shell) = (text(3, ""), text(4, "/"), text(5, NOLOGIN));
                let gid = self.groups.iter().find(|(name, ..)| *name == group).map(|group| group.1);
                match gid.or_else(|| group.parse().ok().filter(|gid| *gid < 65_535)) {
                    Some(gid) if self.users.iter().all(|user| user.name != name) => {
                        let name = name.to_owned();
                        self.users.push(User { name, uid: id, gid, comment, home, shell });
                    }
                    Some(_) => {}
                    None => self.add(name, id, &comment, &home, &shell),
                }
            }
            "g" => drop(self.group(name, id)),
            "m" => {
                let group = word(2).unwrap_or_default();
                if let Some((.., members)) = self.groups.iter_mut().find(|(name, ..)| name == group) {
                    members.insert(name.to_owned());
                }
            }
            _ => {}
        }
    }
}

fn is_name(name: &str) -> bool {
    let legal = |(n, b): (usize, u8)| {
        b.is_ascii_alphabetic() || b == b'_' || (n > 0 && (b.is_ascii_digit() || b == b'-'))
    };
    name.len() <= NAME_BYTES_MAX && name.bytes().enumerate().all(legal)
}

/// The words of a line, in double quotes or not; none in a comment.
fn words(line: &str) -> Vec<String> {
    let line = line.trim();
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    if line.starts_with('#') {
        return words;
    }
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysusers_lines_are_understood() {
        let mut users = Users::debian();
        for line in [
            "# comment",
            "u  one  -  \"A daemon\"  /var/lib/one",
            "u! two 77 - - /bin/sh",
            "u three -:www-data",
            "g  four 88",
            "m  one four",
            "u  ../x 5",
            "u  www-data 500",
            "r  - 100-200",
            "u",
        ] {
            users.sysusers(line);
        }
        let added: Vec<_> = users.users[18..].iter().collect();
        let line =
            |u: &&User| format!("{} {} {} {:?} {} {}", u.name, u.uid, u.gid, u.comment, u.home, u.shell);
        assert_eq!(
            added.iter().map(line).collect::<Vec<_>>(),
            [
                "one 999 999 \"A daemon\" /var/lib/one /usr/sbin/nologin",
                "two 77 77 \"\" / /bin/sh",
                "three 998 33 \"\" / /usr/sbin/nologin"
            ]
        );
        let four = users.groups.iter().find(|g| g.0 == "four").unwrap();
        assert_eq!((four.1, four.2.len()), (88, 1));
        assert!(users.users.iter().any(|u| u.name == "www-data" && u.uid == 33));
    }

    #[test]
    fn known_users_have_ids_of_their_own() {
        let mut ids: Vec<u32> = KNOWN.iter().map(|known| known.2).chain(GROUP.iter().map(|g| g.1)).collect();
        let n = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), n);
    }
}
