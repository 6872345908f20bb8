//! What Debian's copyright files say in their machine-readable form (DEP-5), as SPDX expressions. They are read from the
//! layers, once for each layer: an application change finds the answer in the cache.

use crate::erofs::Reader;
use crate::objects::Objects;
use kiln_model::{Digest, LayerRef};
use kiln_spec::lock::LockedPackage;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// How licences are named that SPDX has no name for.
pub(super) const REFERENCE: &str = "LicenseRef-debian-";
/// Bytes of a copyright file; Debian's longest has some hundred kilobytes.
const COPYRIGHT_BYTES_MAX: u64 = 4 << 20;
/// Licences of one package that are listed.
const LICENCES_MAX: usize = 128;
/// Changes when the same file gives another expression.
const VERSION: &str = "1";

/// Names of DEP-5 whose SPDX names differ by more than `+`.
const NAMES: &[(&str, &str)] = &[
    ("apache-2", "Apache-2.0"),
    ("apache-2.0", "Apache-2.0"),
    ("artistic", "Artistic-1.0-Perl"),
    ("artistic-2", "Artistic-2.0"),
    ("artistic-2.0", "Artistic-2.0"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("bsd-4-clause", "BSD-4-Clause"),
    ("bsd-4-clause-uc", "BSD-4-Clause-UC"),
    ("bsl-1.0", "BSL-1.0"),
    ("cc0", "CC0-1.0"),
    ("cc0-1.0", "CC0-1.0"),
    ("expat", "MIT"),
    ("fsfap", "FSFAP"),
    ("fsful", "FSFUL"),
    ("fsfullr", "FSFULLR"),
    ("isc", "ISC"),
    ("mit", "MIT"),
    ("mpl-2.0", "MPL-2.0"),
    ("openssl", "OpenSSL"),
    ("psf-2", "PSF-2.0"),
    ("unicode", "Unicode-DFS-2016"),
    ("x11", "X11"),
    ("zlib", "Zlib"),
];
/// GNU licences: name, and the versions that SPDX knows.
const GNU: &[(&str, &[&str])] = &[
    ("GPL", &["1.0", "2.0", "3.0"]),
    ("LGPL", &["2.0", "2.1", "3.0"]),
    ("AGPL", &["1.0", "3.0"]),
    ("GFDL", &["1.1", "1.2", "1.3"]),
];

/// The licences of packages whose files are in these layers, by package.
pub fn of_layers(
    objects: &Objects,
    cache: &Path,
    layers: &[LayerRef],
    packages: &[&LockedPackage],
) -> BTreeMap<String, String> {
    if packages.is_empty() {
        return BTreeMap::new();
    }
    // A layer of Debian packages is never the application's.
    let layers = layers.iter().filter(|layer| layer.role != "app");
    layers.flat_map(|layer| of_layer(objects, cache, layer.digest, packages)).collect()
}

fn of_layer(
    objects: &Objects,
    cache: &Path,
    layer: Digest,
    packages: &[&LockedPackage],
) -> BTreeMap<String, String> {
    let names: String = packages.iter().map(|package| format!("{}\n", package.name)).collect();
    let key = Digest::of(format!("licences {VERSION}\n{layer}\n{names}").as_bytes());
    let path = cache.join(format!("licences-{}", key.hex()));
    let kept = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(kept) = kept {
        return kept;
    }
    let Ok(reader) = File::open(objects.path(layer)).and_then(Reader::open) else { return BTreeMap::new() };
    let one = |package: &&&LockedPackage| {
        let path = format!("usr/share/doc/{}/copyright", package.name);
        let found = reader.get(path.as_bytes()).ok()??;
        let plain = !found.is_symlink() && !found.is_dir() && found.size <= COPYRIGHT_BYTES_MAX;
        let text = if plain { reader.read(&found).ok()? } else { return None };
        Some((package.name.clone(), expression(&String::from_utf8_lossy(&text))?))
    };
    let found: BTreeMap<String, String> = packages.iter().filter_map(|package| one(&package)).collect();
    // Only time is lost if it cannot be kept.
    let part = path.with_extension(std::process::id().to_string());
    let bytes = serde_json::to_vec(&found).unwrap_or_default();
    let _ = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, &path));
    found
}

/// The expression of a copyright file; none if it is not in the machine-readable form, or names nothing.
fn expression(text: &str) -> Option<String> {
    let head = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    if !head.to_ascii_lowercase().starts_with("format:") {
        return None;
    }
    // A field begins at the start of its line; what follows it is its text.
    let field = |line: &str| {
        let name = line.get(..8)?.eq_ignore_ascii_case("license:");
        name.then(|| line[8..].trim().to_owned()).filter(|value| !value.is_empty())
    };
    let terms: BTreeSet<String> = text.lines().filter_map(field).map(|value| term(&value)).collect();
    if terms.is_empty() || terms.len() > LICENCES_MAX {
        return None;
    }
    let alone = terms.len() == 1;
    let part = |term: String| if term.contains(' ') && !alone { format!("({term})") } else { term };
    Some(terms.into_iter().map(part).collect::<Vec<_>>().join(" AND "))
}

/// One `License` field. A comma binds loosest, then `or`, then `and`, as the policy has it.
fn term(value: &str) -> String {
    let value = value.replace(", and ", " , ").replace(", or ", " ,or ").replace('|', " or ");
    let joined = |text: &str, word: &str, glue: &str, inner: &dyn Fn(&str) -> String| {
        let parts: Vec<String> =
            text.split(word).map(str::trim).filter(|part| !part.is_empty()).map(inner).collect();
        match &parts[..] {
            [one] => one.clone(),
            _ => {
                let wrap =
                    |part: &String| if part.contains(' ') { format!("({part})") } else { part.clone() };
                parts.iter().map(wrap).collect::<Vec<_>>().join(glue)
            }
        }
    };
    let ands = |text: &str| joined(text, " and ", " AND ", &|name| identifier(name));
    let ors = |text: &str| joined(text, " or ", " OR ", &ands);
    let groups = |text: &str| joined(text, " , ", " AND ", &ors);
    joined(&value, " ,or ", " OR ", &groups)
}

/// The SPDX name of one licence, or one of our own.
fn identifier(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    if let Some((_, spdx)) = NAMES.iter().find(|(debian, _)| *debian == lower) {
        return (*spdx).to_owned();
    }
    for (family, versions) in GNU {
        let Some(version) = lower.strip_prefix(&format!("{}-", family.to_ascii_lowercase())) else {
            continue;
        };
        let (version, later) = version.strip_suffix('+').map_or((version, false), |version| (version, true));
        let whole = if version.contains('.') { version.to_owned() } else { format!("{version}.0") };
        if versions.contains(&whole.as_str()) {
            return format!("{family}-{whole}-{}", if later { "or-later" } else { "only" });
        }
    }
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let own: String = name.chars().take(100).map(legal).collect();
    format!("{REFERENCE}{}", own.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_debian_become_names_of_spdx() {
        for (debian, spdx) in [
            ("Expat", "MIT"),
            ("GPL-2+", "GPL-2.0-or-later"),
            ("LGPL-2.1", "LGPL-2.1-only"),
            ("GPL-9+", "LicenseRef-debian-GPL-9"),
            ("GPL-3+ with Bison exception", "LicenseRef-debian-GPL-3--with-Bison-exception"),
            ("GPL-1+ or Artistic", "GPL-1.0-or-later OR Artistic-1.0-Perl"),
            ("GPL-3+ and ISC", "GPL-3.0-or-later AND ISC"),
            (
                "GPL-1+ or Artistic, and BSD-3-clause",
                "(GPL-1.0-or-later OR Artistic-1.0-Perl) AND BSD-3-Clause",
            ),
        ] {
            assert_eq!(term(debian), spdx, "{debian}");
        }
    }

    #[test]
    fn only_machine_readable_files_say_something() {
        let text = "Format: https://x/copyright-format/1.0/\n\nFiles: *\nCopyright: a\nLicense: GPL-2+\n License: no\n\nFiles: b\nLicense: Expat or ISC\n";
        assert_eq!(expression(text).unwrap(), "GPL-2.0-or-later AND (MIT OR ISC)");
        assert_eq!(expression("This is the Debian prepackaged version\nLicense: GPL\n"), None);
        assert_eq!(expression(""), None);
        assert_eq!(expression("Format: x\nLicense:\n"), None);
    }
}
