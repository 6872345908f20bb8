//! Which packages a list of names needs: the closure over `Depends` and `Pre-Depends`.
//!
//! The rules are few, so that the answer is predictable, and equal to apt's wherever apt has no choice to make: of
//! each package only its candidate counts (the version of the previous lock if it is still offered, else the
//! newest); an alternative that is chosen already wins, else the first that can be met, a real package before its
//! providers; `Recommends` are off. `Conflicts` and `Breaks` among the chosen set are refused, never searched around.

use super::index::{Index, Package};
use super::version::Version;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Packages that one image may need.
const CLOSURE_MAX: usize = 5000;

/// No set of packages meets what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The archive has no such package.
    #[error("there is no package `{name}` in this archive")]
    NoPackage {
        /// What was asked for.
        name: String,
    },
    /// The name stands for several packages and none of its own.
    #[error("`{name}` is a virtual package; it is provided by {providers}")]
    Virtual {
        /// What was asked for.
        name: String,
        /// Names that provide it, in backticks.
        providers: String,
    },
    /// No alternative of a dependency is offered.
    #[error("`{package}` depends on `{group}`, which this archive cannot meet")]
    Unmet {
        /// The package with the dependency.
        package: String,
        /// The dependency as it is written.
        group: String,
    },
    /// Two of the chosen packages exclude each other.
    #[error(
        "`{package}` and `{other}` cannot be installed together: `{package}` conflicts with `{relation}`"
    )]
    Conflict {
        /// The package that declares it.
        package: String,
        /// The package that it excludes.
        other: String,
        /// The relation as it is written.
        relation: String,
    },
    /// A relation cannot be parsed.
    #[error("`{package}` has a relation that is malformed: `{relation}`")]
    Malformed {
        /// The package with the relation.
        package: String,
        /// The relation as it is written.
        relation: String,
    },
    /// The closure is larger than the limit.
    #[error("more than {CLOSURE_MAX} packages are needed")]
    TooMany,
}

/// One relation: a name and perhaps a bound on its version.
struct Atom<'a> {
    name: &'a str,
    bound: Option<(Op, Version)>,
}

#[derive(Clone, Copy)]
enum Op {
    Less,
    AtMost,
    Equal,
    AtLeast,
    Greater,
}

impl<'a> Atom<'a> {
    /// Parses `name[:arch] [(op version)]`.
    fn parse(text: &'a str) -> Option<Self> {
        let (name, bound) = match text.split_once('(') {
            None => (text.trim(), None),
            Some((name, bound)) => (name.trim(), Some(bound.trim().strip_suffix(')')?.trim())),
        };
        let bound = match bound {
            None => None,
            Some(bound) => {
                let at = bound.find(|c| !matches!(c, '<' | '>' | '='))?;
                let op = match &bound[..at] {
                    "<<" => Op::Less,
                    "<=" | "<" => Op::AtMost,
                    "=" => Op::Equal,
                    ">=" | ">" => Op::AtLeast,
                    ">>" => Op::Greater,
                    _ => return None,
                };
                Some((op, bound[at..].trim().parse().ok()?))
            }
        };
        let name = name.split(':').next()?;
        super::index::valid_name(name).then_some(Self { name, bound })
    }

    /// Whether `version` lies within the bound.
    fn met_by(&self, version: &Version) -> bool {
        let Some((op, bound)) = &self.bound else { return true };
        let order = version.cmp(bound);
        match op {
            Op::Less => order == Ordering::Less,
            Op::AtMost => order != Ordering::Greater,
            Op::Equal => order == Ordering::Equal,
            Op::AtLeast => order != Ordering::Less,
            Op::Greater => order == Ordering::Greater,
        }
    }
}

/// Splits a relation field into its groups.
fn groups(field: &str) -> impl Iterator<Item = &str> {
    field.split(',').map(str::trim).filter(|group| !group.is_empty())
}

/// A candidate that provides a name, and with which version.
type Provider<'a> = (&'a Package, Option<Version>);

/// The candidates of an index and what they provide.
pub struct Resolver<'a> {
    candidates: BTreeMap<&'a str, &'a Package>,
    providers: HashMap<&'a str, Vec<Provider<'a>>>,
}

impl<'a> Resolver<'a> {
    /// Chooses the candidates: the version that `keep` names for a package if the index has it, else the newest.
    ///
    /// # Errors
    /// [`ResolveError::Malformed`] for a `Provides` field that cannot be parsed.
    pub fn new(index: &'a Index, keep: &HashMap<String, String>) -> Result<Self, ResolveError> {
        let candidate = |name: &'a str| {
            let versions = index.versions(name);
            let kept = keep.get(name).and_then(|v| versions.iter().find(|p| p.version.as_str() == v));
            kept.or_else(|| versions.first()).map(|package| (name, package))
        };
        let candidates: BTreeMap<_, _> = index.names().filter_map(candidate).collect();
        let mut providers: HashMap<&str, Vec<Provider<'_>>> = HashMap::new();
        for package in candidates.values() {
            for group in groups(&package.provides) {
                let atom = Atom::parse(group).ok_or_else(|| malformed(package, group))?;
                providers
                    .entry(atom.name)
                    .or_default()
                    .push((package, atom.bound.map(|(_, version)| version)));
            }
        }
        Ok(Self { candidates, providers })
    }

    /// The closure of `names`, on top of `present` (which is not repeated in the answer), sorted by name. With
    /// `essential`, all packages that are essential or of priority `required` are part of it.
    ///
    /// # Errors
    /// [`ResolveError`] if there is no such set, or if two packages of it exclude each other.
    pub fn closure(
        &self,
        names: &[String],
        essential: bool,
        present: &[&'a Package],
    ) -> Result<Vec<&'a Package>, ResolveError> {
        let mut chosen = Chosen::default();
        for package in present {
            chosen.packages.insert(&package.name, package);
        }
        if essential {
            self.candidates.values().filter(|p| p.essential || p.required).for_each(|p| chosen.choose(p));
        }
        for name in names {
            chosen.choose(self.named(name)?);
        }
        while let Some(package) = chosen.queue.pop_front() {
            for group in groups(&package.depends) {
                self.meet(package, group, &mut chosen)?;
            }
            if chosen.packages.len() > CLOSURE_MAX {
                return Err(ResolveError::TooMany);
            }
        }
        self.refuse_conflicts(&chosen)?;
        let is_new = |package: &&Package| present.iter().all(|p| p.name != package.name);
        Ok(chosen.packages.into_values().filter(is_new).collect())
    }

    /// The package that a recipe asks for by name; a virtual name is accepted if exactly one package provides it.
    fn named(&self, name: &str) -> Result<&'a Package, ResolveError> {
        if let Some(package) = self.candidates.get(name) {
            return Ok(package);
        }
        match self.providers.get(name).map(Vec::as_slice) {
            None | Some([]) => Err(ResolveError::NoPackage { name: name.to_owned() }),
            Some([(package, _)]) => Ok(package),
            Some(several) => Err(ResolveError::Virtual {
                name: name.to_owned(),
                providers: several
                    .iter()
                    .map(|(p, _)| format!("`{}`", p.name))
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    fn meet(&self, package: &Package, group: &str, chosen: &mut Chosen<'a>) -> Result<(), ResolveError> {
        let mut atoms = Vec::with_capacity(2);
        for alternative in group.split('|') {
            atoms.push(Atom::parse(alternative).ok_or_else(|| malformed(package, group))?);
        }
        let met = |atom: &Atom<'_>| self.meeting(atom).any(|p| chosen.packages.contains_key(&*p.name));
        if atoms.iter().any(met) {
            return Ok(());
        }
        let first = atoms.iter().find_map(|atom| self.meeting(atom).next());
        let unmet = || ResolveError::Unmet { package: package.name.to_string(), group: group.to_owned() };
        chosen.choose(first.ok_or_else(unmet)?);
        Ok(())
    }

    /// The candidates that meet `atom`: the package of that name first, then its providers in order of their names.
    fn meeting<'s>(&'s self, atom: &'s Atom<'_>) -> impl Iterator<Item = &'a Package> + 's {
        let real = self.candidates.get(atom.name).filter(|p| atom.met_by(&p.version)).copied();
        let provides = |(package, version): &Provider<'a>| {
            let met = match version {
                None => atom.bound.is_none(),
                Some(version) => atom.met_by(version),
            };
            met.then_some(*package)
        };
        let providers = self.providers.get(atom.name).map_or(&[][..], Vec::as_slice);
        real.into_iter().chain(providers.iter().filter_map(provides))
    }

    fn refuse_conflicts(&self, chosen: &Chosen<'a>) -> Result<(), ResolveError> {
        for package in chosen.packages.values() {
            for relation in groups(&package.conflicts) {
                let atom = Atom::parse(relation).ok_or_else(|| malformed(package, relation))?;
                let hit = |p: &&Package| p.name != package.name && chosen.packages.contains_key(&*p.name);
                if let Some(other) = self.meeting(&atom).find(hit) {
                    return Err(ResolveError::Conflict {
                        package: package.name.to_string(),
                        other: other.name.to_string(),
                        relation: relation.to_owned(),
                    });
                }
            }
        }
        Ok(())
    }
}

fn malformed(package: &Package, relation: &str) -> ResolveError {
    ResolveError::Malformed {
        package: package.name.to_string(),
        relation: relation.chars().take(120).collect(),
    }
}

/// What is chosen so far, and of it what still has to be looked at.
#[derive(Default)]
struct Chosen<'a> {
    packages: BTreeMap<&'a str, &'a Package>,
    queue: VecDeque<&'a Package>,
}

impl<'a> Chosen<'a> {
    fn choose(&mut self, package: &'a Package) {
        if !self.packages.contains_key(&*package.name) {
            self.packages.insert(&package.name, package);
            self.queue.push_back(package);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(name version, fields)` rows as an index.
    fn index(rows: &[(&str, &str)]) -> Index {
        let mut text = String::new();
        for (id, fields) in rows {
            let (name, version) = id.split_once(' ').unwrap();
            let hex = "ab".repeat(32);
            text += &format!(
                "Package: {name}\nVersion: {version}\nArchitecture: all\nFilename: pool/{name}.deb\nSize: 1\nSHA256: \
                 {hex}\n{}\n\n",
                fields.replace("; ", "\n")
            );
        }
        let mut index = Index::default();
        index.add("bookworm", text.as_bytes()).unwrap();
        index
    }

    fn solve(index: &Index, names: &[&str], keep: &[(&str, &str)]) -> Result<String, ResolveError> {
        let keep = keep.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let chosen = Resolver::new(index, &keep)?.closure(&names, false, &[])?;
        Ok(chosen.iter().map(|p| format!("{}={}", p.name, p.version)).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn takes_the_first_alternative_that_can_be_met() {
        let index = index(&[
            ("app 1", "Depends: gone | old (>= 2) | mail-agent, lib (>= 1.0)"),
            ("old 1", ""),
            ("zmail 1", "Provides: mail-agent"),
            ("amail 1", "Provides: mail-agent (= 3)"),
            ("lib 1.0", "Depends: app"),
            ("pick 1", "Depends: amail | zmail"),
        ]);
        assert_eq!(solve(&index, &["app"], &[]).unwrap(), "amail=1 app=1 lib=1.0");
        assert_eq!(
            solve(&index, &["zmail", "app"], &[]).unwrap(),
            "app=1 lib=1.0 zmail=1",
            "a chosen one wins"
        );
    }

    #[test]
    fn a_versioned_relation_needs_a_versioned_provider() {
        let rows =
            [("app 1", "Depends: api (>= 2)"), ("aa 1", "Provides: api"), ("bb 1", "Provides: api (= 2.1)")];
        assert_eq!(solve(&index(&rows), &["app"], &[]).unwrap(), "app=1 bb=1");
        let error = solve(&index(&rows[..2]), &["app"], &[]).unwrap_err();
        assert!(matches!(error, ResolveError::Unmet { .. }));
    }

    #[test]
    fn keeps_a_locked_version_that_is_still_offered() {
        let index = index(&[("lib 1", ""), ("lib 2", ""), ("app 1", "Depends: lib")]);
        assert_eq!(solve(&index, &["app"], &[]).unwrap(), "app=1 lib=2");
        assert_eq!(solve(&index, &["app"], &[("lib", "1")]).unwrap(), "app=1 lib=1");
        assert_eq!(solve(&index, &["app"], &[("lib", "0.9")]).unwrap(), "app=1 lib=2");
    }

    #[test]
    fn refuses_conflicts_but_not_with_itself() {
        let index = index(&[
            ("exim 1", "Provides: mta; Conflicts: mta"),
            ("postfix 1", "Provides: mta; Conflicts: mta"),
            ("new 2", "Depends: lib; Breaks: lib (<< 2)"),
            ("lib 1", ""),
        ]);
        assert_eq!(solve(&index, &["exim"], &[]).unwrap(), "exim=1");
        assert!(matches!(solve(&index, &["exim", "postfix"], &[]), Err(ResolveError::Conflict { .. })));
        let breaks = solve(&index, &["new"], &[]).unwrap_err();
        assert!(matches!(breaks, ResolveError::Conflict { .. }));
        assert_eq!(
            breaks.to_string(),
            "`new` and `lib` cannot be installed together: `new` conflicts with `lib (<< 2)`"
        );
    }

    #[test]
    fn what_has_to_be_there_before_counts_and_any_architecture_is_this_one() {
        let index = index(&[
            ("app 1", "Pre-Depends: lang:any (>= 3), init; Depends: tool:any | other"),
            ("lang 3", ""),
            ("init 1", "Pre-Depends: early"),
            ("early 1", ""),
            ("tool 1", ""),
            ("other 1", ""),
        ]);
        assert_eq!(solve(&index, &["app"], &[]).unwrap(), "app=1 early=1 init=1 lang=3 tool=1");
    }

    #[test]
    fn names_must_exist_and_be_unambiguous() {
        let index =
            index(&[("one 1", "Provides: solo, many"), ("two 1", "Provides: many"), ("bad 1", "Depends: (")]);
        assert_eq!(solve(&index, &["solo"], &[]).unwrap(), "one=1");
        assert!(matches!(solve(&index, &["many"], &[]), Err(ResolveError::Virtual { .. })));
        assert!(matches!(solve(&index, &["none"], &[]), Err(ResolveError::NoPackage { .. })));
        assert!(matches!(solve(&index, &["bad"], &[]), Err(ResolveError::Malformed { .. })));
    }

    #[test]
    fn essential_and_required_are_part_of_a_base() {
        let index =
            index(&[("ee 1", "Essential: yes"), ("rr 1", "Priority: required; Depends: dd"), ("dd 1", "")]);
        let resolver = Resolver::new(&index, &HashMap::new()).unwrap();
        let base = resolver.closure(&[], true, &[]).unwrap();
        assert_eq!(base.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["dd", "ee", "rr"]);
        assert!(
            resolver.closure(&["dd".into()], false, &base).unwrap().is_empty(),
            "the base is not repeated"
        );
    }
}
