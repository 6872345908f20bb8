//! In which order packages come onto the root.
//!
//! dpkg unpacks a package only once what it pre-depends on is configured, because its `preinst` may use that. Most
//! packages have no `preinst` or pre-depend on the base only: they are unpacked together and configured together.
//! Only the others wait for a later stage.

use crate::debian::deb::Deb;
use std::collections::{BTreeMap, HashMap};

/// Indexes of `debs`, grouped into stages; each stage is configured before the next one is unpacked.
pub(super) fn stages(debs: &[Deb]) -> Vec<Vec<usize>> {
    let mut providers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (n, deb) in debs.iter().enumerate() {
        let provides = deb.field("Provides").unwrap_or_default();
        for name in std::iter::once(deb.name()).chain(provides.split(',').filter_map(name_of)) {
            providers.entry(name).or_default().push(n);
        }
    }
    let edges = |field: &str| -> Vec<Vec<usize>> {
        let of = |deb: &Deb| -> Vec<usize> {
            let names = deb.field(field).unwrap_or_default().split([',', '|']).filter_map(name_of);
            names.filter_map(|name| providers.get(name)).flatten().copied().collect()
        };
        debs.iter().map(of).collect()
    };
    let (before, with) = (edges("Pre-Depends"), edges("Depends"));
    let mut level = vec![0_usize; debs.len()];
    // A package is never earlier than what it needs. Cycles, which only a broken set has across stages, end at the
    // bound: then dpkg reports what is wrong.
    for _ in 0..debs.len() {
        let mut stable = true;
        for (n, deb) in debs.iter().enumerate() {
            let waits = usize::from(deb.control.contains_key("preinst"));
            let least = before[n].iter().filter(|m| **m != n).map(|m| level[*m] + waits);
            let least = least.chain(with[n].iter().map(|m| level[*m])).max().unwrap_or(0);
            if level[n] < least {
                level[n] = least;
                stable = false;
            }
        }
        if stable {
            break;
        }
    }
    let mut stages: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (n, level) in level.into_iter().enumerate() {
        stages.entry(level).or_default().push(n);
    }
    stages.into_values().collect()
}

/// The package name of one alternative of a relation.
fn name_of(relation: &str) -> Option<&str> {
    relation.trim().split([' ', '(', ':']).next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deb(name: &str, fields: &str, preinst: bool) -> Deb {
        let control = format!("Package: {name}\nArchitecture: all\n{fields}");
        let mut files = BTreeMap::from([("control".to_owned(), (control.into_bytes(), 0o644))]);
        if preinst {
            files.insert("preinst".to_owned(), (b"#!/bin/sh\n".to_vec(), 0o755));
        }
        Deb { control: files, entries: vec![] }
    }

    #[test]
    fn only_a_preinst_waits_for_what_it_needs() {
        let debs = [
            deb("app", "Depends: lang, base-thing\n", true),
            deb("lang", "Pre-Depends: lang-min (= 1), libc6 (>= 2)\n", true),
            deb("lang-min", "Pre-Depends: lib\nDepends: lang\n", false),
            deb("lib", "Provides: virtual (= 2)\n", true),
            deb("other", "Pre-Depends: nothing | virtual\n", true),
        ];
        // `lang-min` and `lang` are a cycle, which must end.
        assert!(!stages(&debs).is_empty());
        let debs: Vec<Deb> = debs.into_iter().filter(|deb| deb.name() != "lang-min").collect();
        assert_eq!(stages(&debs), [vec![0, 1, 2], vec![3]]);
        let debs = [
            deb("lang", "Pre-Depends: lang-min\n", true),
            deb("lang-min", "", true),
            deb("x", "Depends: lang\n", false),
        ];
        assert_eq!(stages(&debs), [vec![1], vec![0, 2]]);
        assert_eq!(stages(&[]), Vec::<Vec<usize>>::new());
    }
}
