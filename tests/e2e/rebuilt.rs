//! `kiln image verify --rebuild` bakes an image again elsewhere, finds it the same, and names what differs if it is not.

use kiln_tests::{Kiln, Project, free_address, run as run_program};
use std::process::Command;

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = Project::from_example("shop");
    // The image on `scratch` alone: the Debian ones are compared in crates/image/tests/pure.rs.
    let text = std::fs::read_to_string(project.path("kiln.toml")).expect("kiln.toml");
    let (api, web) = (text.find("[images.api]").expect("api"), text.find("[services.web]").expect("web"));
    let service = text.find("[services.api]").expect("service");
    let routes = text.find("[[routes]]").expect("routes");
    project.write("kiln.toml", &format!("name = \"shop\"\n{}{}", &text[api..web], &text[service..routes]));
    project.release(1);
    project.commit("one image");
    let bake = || {
        let answer = kiln.in_project(&project, &["bake", "--json"]).expect(0).json();
        (answer["images"]["api"].as_str().expect("a digest").to_owned(), answer["commit"].clone())
    };
    let (first, commit) = bake();
    let answer =
        kiln.in_project(&project, &["image", "verify", &first, "--rebuild", "--json"]).expect(0).json();
    assert_eq!(answer["rebuilt"], first.as_str());
    let place = answer["place"].as_str().expect("a place").to_owned();
    assert!(!std::path::Path::new(&place).exists(), "{place} was left behind");
    let state = kiln.state.path().display().to_string();
    assert!(!place.starts_with(&state), "{place} is in the state folder");

    project.release(2);
    project.commit("another file");
    let (second, _) = bake();
    assert_ne!(first, second);
    // Somebody says that the second image came from the first commit.
    let record = kiln.state.path().join(format!("images/{}.json", second.trim_start_matches("sha256:")));
    const FORGE: &str = "import base64, json, sys\n\
        path, commit = sys.argv[1:]\n\
        envelope = json.load(open(path))\n\
        statement = json.loads(base64.b64decode(envelope['payload']))\n\
        statement['predicate']['buildDefinition']['externalParameters']['commit'] = commit\n\
        envelope['payload'] = base64.b64encode(json.dumps(statement).encode()).decode()\n\
        json.dump(envelope, open(path, 'w'))\n";
    let commit = commit.as_str().expect("a commit");
    run_program(Command::new("python3").args(["-c", FORGE]).arg(&record).arg(commit)).expect(0);
    let answer = kiln.in_project(&project, &["image", "verify", &second, "--rebuild"]).expect(1);
    assert!(answer.stderr.contains("is another one"), "{}", answer.stderr);
    // The times of all files are those of another commit, of directories first.
    assert!(answer.stderr.contains("layer app: `/` has time"), "{}", answer.stderr);

    // What was baked is found without a worker; what is not there whole is baked again.
    let layer = kiln.in_project(&project, &["image", "show", &second, "--json"]).expect(0).json();
    let digest = layer["manifest"]["layers"][0]["digest"].as_str().expect("a layer").to_owned();
    let hex = digest.trim_start_matches("sha256:");
    let object = kiln.state.path().join("objects/sha256").join(&hex[..2]).join(&hex[2..]);
    std::fs::remove_file(&object).expect("the layer");
    assert_eq!(bake().0, second);
    assert!(object.exists(), "the layer is there again");
    kiln.down();
}
