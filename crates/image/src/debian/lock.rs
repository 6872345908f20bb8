//! From the recipes of a project and the indexes of a mirror to a [`Lock`].
//!
//! All images of one release share one base set (everything essential or of priority `required`, with what that
//! needs, dpkg among it), so that they share one base layer; each image adds the closure of its own packages to it.

use super::index::{Index, Package};
use super::mirror::{Mirror, MirrorError};
use super::resolve::{ResolveError, Resolver};
use kiln_spec::lock::{DebianRecipe, LOCK_VERSION, Lock, LockedImage, LockedPackage};
use kiln_spec::{RecipeName, Recipes};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The releases that the installer knows.
const RELEASES: &[&str] = &["bookworm"];

/// No lock could be made.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The release is not one that kiln installs.
    #[error("image `{image}`: there is no base `debian:{suite}`")]
    Suite {
        /// The image that asks for it.
        image: RecipeName,
        /// The release that it asks for.
        suite: String,
    },
    /// The mirror cannot be read.
    #[error("cannot read the package lists of `{suite}`")]
    Mirror {
        /// The release.
        suite: String,
        /// Why.
        #[source]
        source: MirrorError,
    },
    /// The packages of the base do not fit together.
    #[error("cannot resolve the base `debian:{suite}`")]
    Base {
        /// The release.
        suite: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// The packages of an image do not fit together.
    #[error("cannot resolve the packages of image `{image}`")]
    Image {
        /// The image.
        image: RecipeName,
        /// Why.
        #[source]
        source: ResolveError,
    },
}

impl LockError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Suite { .. } => format!("kiln installs {}", RELEASES.join(", ")),
            Self::Mirror { source, .. } => source.hint().to_owned(),
            Self::Base { .. } => "the mirror may be incomplete: name another with `--mirror`".to_owned(),
            Self::Image { .. } => "correct `packages` of this image in kiln.toml".to_owned(),
        }
    }
}

/// The name under which a lock lists the packages of a base.
pub fn base_name(suite: &str) -> String {
    format!("debian:{suite}")
}

/// Resolves `recipes` into a lock. A `previous` lock that fits them is returned as it is; one that does not keeps its
/// versions where the archive still offers them and they fit. With `update`, everything is taken anew.
///
/// # Errors
/// [`LockError`], with the image at fault where there is one.
pub fn resolve_lock(
    mirror: &Mirror,
    recipes: &BTreeMap<RecipeName, DebianRecipe>,
    previous: Option<&Lock>,
    update: bool,
) -> Result<Lock, LockError> {
    let previous = previous.filter(|_| !update);
    let all = Recipes { debian: recipes.clone(), ..Recipes::default() };
    if let Some(lock) = previous.filter(|lock| lock.is_current(&all)) {
        return Ok(lock.clone());
    }
    for (image, recipe) in recipes {
        if !RELEASES.contains(&recipe.suite.as_str()) {
            return Err(LockError::Suite { image: image.clone(), suite: recipe.suite.clone() });
        }
    }
    let mut lock = Lock { version: LOCK_VERSION, ..Lock::default() };
    let mut rows = BTreeMap::new();
    for suite in recipes.values().map(|recipe| &recipe.suite).collect::<BTreeSet<_>>() {
        let failed = |source| LockError::Mirror { suite: suite.clone(), source };
        let (index, suites) = mirror.index(suite).map_err(failed)?;
        lock.suites.extend(suites);
        let recipes: Vec<_> = recipes.iter().filter(|(_, recipe)| recipe.suite == *suite).collect();
        let keep = previous.map(kept_versions).unwrap_or_default();
        let kept = (!keep.is_empty()).then(|| release_rows(&index, &keep, suite, &recipes));
        // Versions that are kept can contradict what is new; then nothing is kept.
        match kept {
            Some(Ok(found)) => merge(&mut rows, found),
            _ => merge(&mut rows, release_rows(&index, &HashMap::new(), suite, &recipes)?),
        }
        for (image, recipe) in recipes {
            lock.images.insert(image.clone(), LockedImage { base: recipe.base(), recipe: recipe.digest() });
        }
    }
    lock.packages = rows.into_values().collect();
    Ok(lock)
}

fn kept_versions(lock: &Lock) -> HashMap<String, String> {
    lock.packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect()
}

/// Rows by (name, version, suite), which is the order of the file.
type Rows = BTreeMap<(String, String, String), LockedPackage>;

fn merge(rows: &mut Rows, more: Vec<LockedPackage>) {
    for row in more {
        let key = (row.name.clone(), row.version.clone(), row.suite.clone());
        match rows.entry(key) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(row);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                place.get_mut().used_by.extend(row.used_by)
            }
        }
    }
}

/// The rows of one release, one for each use of a package.
fn release_rows(
    index: &Index,
    keep: &HashMap<String, String>,
    suite: &str,
    recipes: &[(&RecipeName, &DebianRecipe)],
) -> Result<Vec<LockedPackage>, LockError> {
    let of_base = |source| LockError::Base { suite: suite.to_owned(), source };
    let resolver = Resolver::new(index, keep).map_err(of_base)?;
    // `debian-slim` stands on nothing.
    let needs_base = recipes.iter().any(|(_, recipe)| !recipe.slim);
    let base = if needs_base { resolver.closure(&[], true, &[]).map_err(of_base)? } else { vec![] };
    let mut rows: Vec<_> = base.iter().map(|package| row(package, base_name(suite))).collect();
    for (image, recipe) in recipes {
        let names: Vec<_> = recipe.packages.iter().cloned().collect();
        let failed = |source| LockError::Image { image: (*image).clone(), source };
        let below = if recipe.slim { &[][..] } else { &base };
        let added = resolver.closure(&names, false, below).map_err(failed)?;
        rows.extend(added.iter().map(|package| row(package, image.to_string())));
    }
    Ok(rows)
}

fn row(package: &Package, user: String) -> LockedPackage {
    LockedPackage {
        name: package.name.to_string(),
        version: package.version.to_string(),
        architecture: package.architecture.to_string(),
        sha256: package.sha256,
        size: package.size,
        path: package.path.to_string(),
        suite: package.suite.to_string(),
        used_by: [user].into(),
    }
}
