//! The kernel of virtual machines from Debian's package in `target/mirror` (`.ci/mirror`). No network, no root.

use kiln_image::Objects;
use kiln_image::debian::{Mirror, MirrorError};
use kiln_image::kernel::{KernelError, RELEASE, ensure, known, objects_of};
use std::path::Path;

fn mirror() -> Result<Mirror, MirrorError> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/mirror");
    Mirror::open(Some(&format!("file:{}", dir.display())), RELEASE, None)
}

fn nowhere() -> Result<Mirror, MirrorError> {
    panic!("the mirror is asked")
}

#[test]
fn it_is_fetched_once_and_mended_without_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path();
    let objects = Objects::open(&state.join("objects")).unwrap();
    assert_eq!(known(state, &objects), None);
    let empty = tempfile::tempdir().unwrap();
    let none = || Mirror::open(Some(&format!("file:{}", empty.path().display())), RELEASE, None);
    let error = ensure(state, &objects, none, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, KernelError::Mirror(_)) && error.may_pass(), "{error:?}");
    assert_eq!(objects_of(state), []);

    let mut told = vec![];
    let first = ensure(state, &objects, mirror, &mut |text| told.push(text)).unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(known(state, &objects).as_ref(), Some(&first));
    assert_eq!(ensure(state, &objects, nowhere, &mut |_| {}).unwrap(), first);
    let kept: Vec<_> = objects_of(state).into_iter().map(|(object, _)| objects.path(object)).collect();
    assert!(kept.len() == 3 && kept.contains(&first.kernel) && kept.contains(&first.initrd));
    let kernel = std::fs::read(&first.kernel).unwrap();
    // The magic number of a kernel for x86 (Documentation/arch/x86/boot.rst), and of an archive for it.
    assert_eq!(&kernel[0x202..0x206], b"HdrS");
    let initrd = std::fs::read(&first.initrd).unwrap();
    assert!(initrd.starts_with(b"070701"));
    for name in ["kiln/modules/virtio_console.ko", "kiln/modules/erofs.ko", "kiln/modules/overlay.ko"] {
        assert!(initrd.windows(name.len()).any(|window| window == name.as_bytes()), "{name}");
    }
    for path in [&first.kernel, &first.initrd] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o644);
        // Damaged on the disk: made again of the package that is there.
        std::fs::write(path, "damaged").unwrap();
        assert_eq!(known(state, &objects), None);
        assert_eq!(ensure(state, &objects, nowhere, &mut |_| {}).unwrap(), first);
    }
    // The record of a kiln with another init.
    let record = state.join("kernel.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["init"] = value["package"].clone();
    std::fs::write(&record, value.to_string()).unwrap();
    assert_eq!(known(state, &objects), None);
    assert_eq!(ensure(state, &objects, nowhere, &mut |_| {}).unwrap(), first);
    assert_eq!(std::fs::read_to_string(&record).unwrap(), text);
}
