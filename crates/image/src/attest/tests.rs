//! Statements, trust, and which lock files belong to an image.

use super::*;
use crate::bake::BakeJob;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_spec::Project;

const TOML: &str = "name = \"shop\"\n[images.web]\nbase = \"debian:bookworm\"\npackages = [\"nginx\"]\ncopy = [{ from = \"site/\", to = \"/srv\" }]\n[services.web]\nimage = \"web\"\ncommand = [\"/bin/x\"]\n";

fn job(state: &Path) -> BakeJob {
    let project = Project::parse(TOML, "kiln.toml").unwrap();
    let recipe = project.images.values().next().unwrap().clone();
    let row = |name: &str, user: &str, version: &str| {
        let sha256 = Digest::of(name.as_bytes());
        format!(
            "[[packages]]\nname = \"{name}\"\nversion = \"{version}\"\narchitecture = \"amd64\"\nsha256 = \"{sha256}\"\nsize = 10\npath = \"pool/{name}\"\nsuite = \"bookworm-security\"\nused_by = [\"{user}\"]\n"
        )
    };
    let digest = Digest::of(b"x");
    let lock = [
        format!("version = 1\n[suites.bookworm-security]\nin_release = \"{digest}\"\n"),
        format!("[images.web]\nbase = \"debian:bookworm\"\nrecipe = \"{digest}\"\n"),
        format!("[images.\"web.build\"]\nbase = \"debian:bookworm\"\nrecipe = \"{digest}\"\n"),
        row("gcc", "web.build", "12"),
        row("libstdc++6", "debian:bookworm", "1:12.2.0-14+deb12u1~x"),
        row("nginx", "web", "1.22"),
        row("other", "api", "1"),
    ]
    .concat();
    BakeJob {
        state: state.to_owned(),
        project: "shop".to_owned().try_into().unwrap(),
        commit: "a".repeat(40).try_into().unwrap(),
        recipe,
        lock: Some(Lock::parse(&lock).unwrap()),
        mount_points: ["/var/cache".to_owned()].into(),
        mirror: None,
        program: "kiln".into(),
        describe: false,
        images: BTreeMap::new(),
        registry_auth: None,
        is_builder: false,
    }
}

fn bake<'a>(job: &'a BakeJob, image: Digest, layers: &'a [LayerRef]) -> Bake<'a> {
    let sha256 = Digest::of(b"index");
    let files = vec![FileRow { path: "srv/index.html".into(), size: 5, sha256, sha1: "0".repeat(40) }];
    let locks = vec![("Cargo.lock".to_owned(), b"[[package]]\nname = \"a\"\nversion = \"1\"\n".to_vec())];
    let below = Box::leak(Box::default());
    Bake { job, image, layers, below, epoch: 1_700_000_000, files, locks, started: SystemTime::now() }
}

fn layers() -> Vec<LayerRef> {
    let layer = |role: &str| LayerRef { digest: Digest::of(role.as_bytes()), size: 1, role: role.into() };
    vec![layer("base"), layer("app")]
}

fn now() -> jiff::Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

#[test]
fn a_statement_names_what_decides_and_what_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::open(&dir.path().join("objects")).unwrap();
    let (job, layers, image) = (job(dir.path()), layers(), Digest::of(b"image"));
    let statement = write(&objects, bake(&job, image, &layers)).unwrap().unwrap();
    assert_eq!(statement.image(), Some(image));
    let names: Vec<&str> =
        statement.predicate.build_definition.resolved_dependencies.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["source", "kiln.lock", "base", "libstdc++6", "nginx", "gcc"]);
    let purls: Vec<&str> = statement.packages().map(|p| p.uri.as_str()).collect();
    assert_eq!(purls[0], "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1~x?arch=amd64&distro=bookworm");
    let key = SigningKey::generate().unwrap();
    seal(dir.path(), image, statement.clone(), &key).unwrap();
    let bytes = read(dir.path(), image).unwrap().unwrap();
    let vouched = Trust::only(key.public()).check(image, Some(&bytes), now()).unwrap();
    let builder = format!("urn:kiln:builder:{}", key.public().id());
    assert_eq!(vouched.statement.predicate.run_details.builder.id, builder);
    assert_eq!(vouched.statement.external(), statement.external());
    assert_eq!(vouched.statement.summary()["name"], "web");
    // From here on a bake of the same image finds it vouched for.
    assert_eq!(write(&objects, bake(&job, image, &layers)).unwrap(), None);
    // Unless nobody who is trusted does.
    let again = BakeJob { describe: true, ..job.clone() };
    assert!(write(&objects, bake(&again, image, &layers)).unwrap().is_some());
    // Bills of materials depend on nothing but what is in the image.
    let other = tempfile::tempdir().unwrap();
    let job = self::job(other.path());
    write(&objects, bake(&job, image, &layers)).unwrap();
    for format in Format::ALL {
        let made = sbom::read(dir.path(), image, format, &vouched.statement).unwrap();
        assert_eq!(made, std::fs::read(sbom_path(other.path(), image, format)).unwrap());
        let text = String::from_utf8(made).unwrap();
        assert!(text.contains("2023-11-14T22:13:20Z") && !text.contains("\"gcc\""), "{text}");
        std::fs::write(sbom_path(dir.path(), image, format), text.replace("nginx", "nginy")).unwrap();
        let changed = sbom::read(dir.path(), image, format, &vouched.statement);
        assert!(matches!(changed, Err(sbom::SbomError::Changed { .. })));
    }
}

/// A statement about `image` with every field filled in.
fn statement(state: &Path, image: Digest) -> Statement {
    let (job, layers) = (job(state), layers());
    let packages = packages(&job.recipe, job.lock.as_ref().unwrap());
    let made = Resource::new("bill", Format::Spdx.uri(), image);
    describe(&job, image, (&layers, &Below::default()), (0, SystemTime::now()), &packages, vec![made])
}

/// Signs a statement about `image` and lets `tamper` at the envelope.
fn checked(
    trust: &Trust,
    key: &SigningKey,
    image: Digest,
    tamper: impl FnOnce(&mut Envelope),
) -> Result<Vouched, PolicyError> {
    let dir = tempfile::tempdir().unwrap();
    seal(dir.path(), image, statement(dir.path(), image), key).unwrap();
    let mut envelope: Envelope = serde_json::from_slice(&read(dir.path(), image).unwrap().unwrap()).unwrap();
    tamper(&mut envelope);
    trust.check(image, Some(&serde_json::to_vec(&envelope).unwrap()), now())
}

#[test]
fn what_nobody_trusted_vouches_for_is_refused() {
    let (key, foreign) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let trust = Trust::only(key.public());
    let image = Digest::of(b"image");
    assert_eq!(checked(&trust, &key, image, |_| {}).unwrap().key, key.public());
    assert_eq!(trust.check(image, None, now()), Err(PolicyError::Unsigned { image }));
    assert!(matches!(trust.check(image, Some(b"{}"), now()), Err(PolicyError::Damaged { .. })));
    let refused = |trust: &Trust, key: &SigningKey, tamper: &dyn Fn(&mut Envelope)| {
        checked(trust, key, image, |envelope| tamper(envelope)).unwrap_err()
    };
    let error = refused(&trust, &foreign, &|_| {});
    let keys = foreign.public().short();
    assert_eq!(error, PolicyError::Foreign { image, keys });
    // A foreign key that calls itself by a trusted name.
    let id = key.public().id();
    let error = refused(&trust, &foreign, &|e| e.signatures[0].keyid.clone_from(&id));
    assert!(matches!(error, PolicyError::Damaged { .. }), "{error}");
    assert_eq!(refused(&trust, &key, &|e| e.signatures.clear()), PolicyError::Unsigned { image });
    let error = refused(&trust, &key, &|e| e.payload_type = "text/plain".into());
    assert!(matches!(error, PolicyError::Damaged { .. }), "{error}");
    // A key that was taken out of the list, and no key at all.
    assert!(matches!(refused(&Trust::only(foreign.public()), &key, &|_| {}), PolicyError::Foreign { .. }));
    assert!(matches!(refused(&Trust::default(), &key, &|_| {}), PolicyError::Foreign { .. }));
    // A good statement about something else.
    let dir = tempfile::tempdir().unwrap();
    let (job, layers) = (job(dir.path()), layers());
    let statement = describe(
        &job,
        Digest::of(b"other"),
        (&layers, &Below::default()),
        (0, SystemTime::now()),
        &[],
        vec![],
    );
    seal(dir.path(), image, statement, &key).unwrap();
    let bytes = read(dir.path(), image).unwrap();
    assert_eq!(trust.check(image, bytes.as_deref(), now()), Err(PolicyError::Other { image }));
}

#[test]
fn every_field_of_a_statement_is_covered() {
    let key = SigningKey::generate().unwrap();
    let trust = Trust::only(key.public());
    let image = Digest::of(b"image");
    let dir = tempfile::tempdir().unwrap();
    let value = serde_json::to_value(statement(dir.path(), image)).unwrap();
    let mut pointers = vec![];
    leaves(&value, String::new(), &mut pointers);
    assert!(pointers.len() > 30, "{pointers:?}");
    for pointer in pointers {
        let refused = checked(&trust, &key, image, |envelope| {
            let mut changed: serde_json::Value =
                serde_json::from_slice(&envelope.payload().unwrap()).unwrap();
            // The builder was filled in by whoever signed.
            *changed.pointer_mut(&pointer).unwrap() = "changed".into();
            envelope.payload = STANDARD.encode(serde_json::to_vec(&changed).unwrap());
        });
        assert!(matches!(refused, Err(PolicyError::Damaged { .. })), "{pointer}: {refused:?}");
    }
}

fn leaves(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves(value, format!("{at}/{}", escape(key)), found));
        }
        serde_json::Value::Array(list) => {
            (0..).zip(list).for_each(|(n, value)| leaves(value, format!("{at}/{n}"), found));
        }
        _ => found.push(at),
    }
}

#[test]
fn lists_of_keys_have_one_a_line_and_keys_end() {
    let (old, new) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let text = format!("# own\n\n{} until=2026-11-24 # old\n{}\n", old.public(), new.public());
    let path = Path::new("trust");
    let trust = Trust::parse(&text, path).unwrap();
    assert_eq!(Trust::parse(&trust.to_text(), path).unwrap(), trust);
    let image = Digest::of(b"image");
    assert!(checked(&trust, &old, image, |_| {}).is_ok(), "on its last day");
    let dir = tempfile::tempdir().unwrap();
    let (job, layers) = (job(dir.path()), layers());
    let statement = describe(&job, image, (&layers, &Below::default()), (0, SystemTime::now()), &[], vec![]);
    seal(dir.path(), image, statement, &old).unwrap();
    let bytes = read(dir.path(), image).unwrap();
    let day_after = "2026-11-25T00:00:00Z".parse().unwrap();
    let error = trust.check(image, bytes.as_deref(), day_after).unwrap_err();
    let until = "2026-11-24".to_owned();
    assert_eq!(error, PolicyError::Expired { image, key: old.public().short(), until });
    for bad in
        ["x", "ed25519:AA", &format!("{} for=ever", old.public()), &format!("{} until=soon", old.public())]
    {
        assert!(Trust::parse(bad, path).is_err(), "{bad}");
    }
    assert!(Trust::read(Path::new("/nonexistent")).is_err());
}

#[test]
fn lock_files_beside_and_above_what_is_copied_belong_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = job(dir.path()).recipe;
    let file = |path: &str| SourceFile { path: path.into(), mode: 0o100_644, id: String::new() };
    let files = [
        file("Cargo.lock"),
        file("api/Cargo.lock"),
        file("site/package-lock.json"),
        file("site/deep/requirements.txt"),
        file("sites/package-lock.json"),
        file("site/other.lock"),
    ];
    let found = |recipe: &ImageRecipe| -> Vec<String> {
        lock_files(recipe, &files).iter().map(|f| String::from_utf8(f.path.clone()).unwrap()).collect()
    };
    assert_eq!(found(&recipe), ["Cargo.lock", "site/package-lock.json"]);
    recipe.copy[0].from = "site/deep/page".into();
    assert_eq!(found(&recipe), ["Cargo.lock", "site/package-lock.json", "site/deep/requirements.txt"]);
    recipe.copy[0].source = CopySource::Build;
    assert_eq!(found(&recipe), ["Cargo.lock"]);
    recipe.copy.clear();
    assert_eq!(found(&recipe), [""; 0]);
}
