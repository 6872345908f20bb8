//! The packet filter by netlink against what `nft` makes of it. Needs root and `nft`; skips loudly without root. Each test
//! has a network namespace of its own.

use kiln_sys::nftables::{Batch, Hook, Interface, Nftables, Protocol, Rule, Side, Verdict};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

/// A network namespace for the calling thread, or none without root.
fn filter() -> Option<Nftables> {
    if let Err(error) = kiln_sys::namespace::enter_private_net() {
        println!("SKIPPED: the packet filter needs root: {error}");
        return None;
    }
    Some(Nftables::open().unwrap())
}

fn list() -> String {
    let output = Command::new("nft").args(["-n", "-y", "list", "ruleset"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a53_0000 + n)
}

const TABLE: &str = "kiln-test";

fn table() -> Batch {
    let mut batch = Batch::about(TABLE);
    batch.replace_table();
    batch.set_of_addresses("internet");
    batch.set_of_pairs("services");
    batch.set_of_networks(
        "private",
        &[(Ipv4Addr::UNSPECIFIED, 8), (address(0), 16), ([224, 0, 0, 0].into(), 3)],
    );
    batch.chain("judged", None);
    batch.chain("input", Some(Hook::Input));
    batch.chain("forward", Some(Hook::Forward));
    batch.chain("leave", Some(Hook::SourceTranslation));
    batch.rule("input", Rule::new().came_by(Interface::Starting("kb0123"), true), Verdict::Goto("judged"));
    batch.rule(
        "input",
        Rule::new().came_by(Interface::Named("lo"), false).address_of(
            Side::Destination,
            address(0),
            19,
            true,
        ),
        Verdict::Drop,
    );
    batch.rule("judged", Rule::new().is_reply().of_connection(), Verdict::Accept);
    batch.rule("judged", Rule::new().pair_in("services").to_port(Protocol::Tcp, 80), Verdict::Accept);
    batch.rule("judged", Rule::new().of_protocol(Protocol::Tcp), Verdict::Reset);
    batch.rule("judged", Rule::new(), Verdict::Reject);
    let known = Rule::new().address_in(Side::Source, "internet", true);
    batch.rule("forward", known.address_in(Side::Destination, "private", false), Verdict::Accept);
    batch.rule(
        "forward",
        Rule::new().leaves_by(Interface::Starting("kb0123")).to_port(Protocol::Udp, 53),
        Verdict::Drop,
    );
    batch.rule("leave", Rule::new().address_in(Side::Source, "internet", true), Verdict::Masquerade);
    batch
}

const EXPECTED: &str = "\
table inet kiln-test {
	set internet {
		type ipv4_addr
		elements = { 10.83.0.2 }
	}

	set services {
		type ipv4_addr . ipv4_addr
		elements = { 10.83.0.2 . 10.83.0.9 }
	}

	set private {
		type ipv4_addr
		flags constant,interval
		elements = { 0.0.0.0/8, 10.83.0.0/16,
			     224.0.0.0/3 }
	}

	chain judged {
		ct direction 1 ct state 0x2,0x4 accept
		ip saddr . ip daddr @services tcp dport 80 accept
		meta l4proto 6 reject with tcp reset
		reject with icmpx 3
	}

	chain input {
		type filter hook input priority -10; policy accept;
		iifname \"kb0123*\" goto judged
		iifname != \"lo\" ip daddr 10.83.0.0/19 drop
	}

	chain forward {
		type filter hook forward priority -10; policy accept;
		ip saddr @internet ip daddr != @private accept
		oifname \"kb0123*\" udp dport 53 drop
	}

	chain leave {
		type nat hook postrouting priority 100; policy accept;
		ip saddr @internet masquerade
	}
}
";

#[test]
fn nft_reads_what_was_written() {
    let Some(mut filter) = filter() else { return };
    assert!(!filter.has_table(TABLE).unwrap());
    filter.delete_table(TABLE).unwrap();
    // A second time as well: it is replaced as a whole.
    for _ in 0..2 {
        filter.commit(table()).unwrap();
        let mut batch = Batch::about(TABLE);
        batch.add("internet", &[&[address(2)]]);
        batch.add("services", &[&[address(2), address(9)]]);
        filter.commit(batch).unwrap();
    }
    assert!(filter.has_table(TABLE).unwrap());
    let listed = list();
    assert_eq!(listed, EXPECTED, "{listed}");
    filter.delete_table(TABLE).unwrap();
    assert_eq!(list(), "");
}

#[test]
fn a_transaction_happens_as_a_whole_or_not_at_all() {
    let Some(mut filter) = filter() else { return };
    filter.commit(table()).unwrap();
    let mut batch = Batch::about(TABLE);
    batch.add("internet", &[&[address(3)]]);
    batch.remove("internet", &[&[address(4)]]);
    batch.add("nowhere", &[&[address(5)]]);
    assert_eq!(filter.commit(batch).unwrap_err().errno(), libc_enoent());
    assert_eq!(filter.count(TABLE, "internet").unwrap(), 0);
    // The one after a failure gets its own answer.
    let mut batch = Batch::about(TABLE);
    batch.add("internet", &[&[address(3)]]);
    filter.commit(batch).unwrap();
    assert_eq!(filter.count(TABLE, "internet").unwrap(), 1);
    assert_eq!(filter.count(TABLE, "nowhere").unwrap(), 0);
    assert_eq!(filter.count("nothing", "internet").unwrap(), 0);
}

fn libc_enoent() -> i32 {
    rustix::io::Errno::NOENT.raw_os_error()
}

#[test]
fn many_elements_come_and_go_one_by_one() {
    let Some(mut filter) = filter() else { return };
    filter.commit(table()).unwrap();
    for (name, before) in [("empty", 0u32), ("with 500 elements", 500), ("with 3000 elements", 2500)] {
        let first = filter.count(TABLE, "services").unwrap() as u32;
        let pairs: Vec<[Ipv4Addr; 2]> = (0..before).map(|n| [address(first + n), address(9)]).collect();
        let mut batch = Batch::about(TABLE);
        batch.add("services", &pairs.iter().map(|pair| &pair[..]).collect::<Vec<_>>());
        filter.commit(batch).unwrap();
        let (mut add, mut remove) = (vec![], vec![]);
        for n in 0..200 {
            let pair = [address(60_000 + n), address(9)];
            for (times, removes) in [(&mut add, false), (&mut remove, true)] {
                let begun = Instant::now();
                let mut batch = Batch::about(TABLE);
                match removes {
                    true => batch.remove("services", &[&pair]),
                    false => batch.add("services", &[&pair]),
                }
                filter.commit(batch).unwrap();
                times.push(begun.elapsed());
            }
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2].as_micros()
        };
        println!("a set {name}: add {} us, remove {} us", median(&mut add), median(&mut remove));
        assert_eq!(filter.count(TABLE, "services").unwrap() as u32, first + before);
    }
}
