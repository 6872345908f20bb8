//! Packages as attackers would make them (notes/control.md X2). Each is refused, in words, without much memory or time; what
//! only is unusual is taken as dpkg takes it.

use super::*;
use std::io::Write as _;

/// A header of tar with any type, size and fields.
#[derive(Clone)]
struct Row {
    path: Vec<u8>,
    flag: u8,
    link: Vec<u8>,
    body: Vec<u8>,
    /// What the header says of the size; none says the truth.
    size: Option<Vec<u8>>,
    uid: u64,
    mode: u32,
}

fn row(path: &str, flag: u8, body: &[u8]) -> Row {
    Row { path: path.into(), flag, link: vec![], body: body.into(), size: None, uid: 0, mode: 0o644 }
}

fn link(path: &str, flag: u8, target: &str) -> Row {
    Row { link: target.into(), ..row(path, flag, b"") }
}

fn tar_of(rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        let mut header = [0_u8; 512];
        header[..row.path.len()].copy_from_slice(&row.path);
        header[100..108].copy_from_slice(format!("{:07o}\0", row.mode).as_bytes());
        header[108..116].copy_from_slice(format!("{:07o}\0", row.uid).as_bytes());
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", row.body.len()).as_bytes());
        if let Some(size) = &row.size {
            header[124..124 + size.len()].copy_from_slice(size);
        }
        header[136..148].copy_from_slice(b"00000000007\0");
        header[156] = row.flag;
        header[157..157 + row.link.len()].copy_from_slice(&row.link);
        header[257..265].copy_from_slice(b"ustar  \0");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(&row.body);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.extend([0; 1024]);
    out
}

fn member(name: &str, body: &[u8]) -> Vec<u8> {
    let mut out =
        format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, body.len()).into_bytes();
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(2), b'\n');
    out
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let members = members.iter().flat_map(|(name, body)| member(name, body));
    b"!<arch>\n".iter().copied().chain(members).collect()
}

fn control() -> Vec<u8> {
    tar_of(&[row("./control", b'0', b"Package: aa\nArchitecture: all\n")])
}

fn package(rows: &[Row]) -> Vec<u8> {
    ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control()), ("data.tar", &tar_of(rows))])
}

fn paths(rows: &[Row]) -> Vec<String> {
    let deb = Deb::read(&package(rows)).unwrap();
    deb.entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

#[track_caller]
fn refused(rows: &[Row], words: &str) {
    let error = Deb::read(&package(rows)).unwrap_err();
    assert!(crate::worker::chain(&error).contains(words), "{error}");
}

/// `LENGTH KEY=VALUE\n`, where the length counts all of it.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let digits = (1..).find(|n| (rest + n).to_string().len() == *n).unwrap();
    format!("{} {key}={value}\n", rest + digits).into_bytes()
}

#[test]
fn members_of_ar_in_another_order_twice_or_more_than_there_are() {
    let (version, control, data) = (&b"2.0\n"[..], &control()[..], &tar_of(&[])[..]);
    let good = [("debian-binary", version), ("control.tar", control), ("data.tar", data)];
    assert!(Deb::read(&ar(&good)).is_ok());
    let with_signature = [good[0], good[1], good[2], ("_gpgorigin", b"x")];
    assert!(Deb::read(&ar(&with_signature)).is_ok(), "names with `_` are to be ignored");
    let evil = tar_of(&[row("./control", b'0', b"Package: bb\nArchitecture: all\n")]);
    for members in [
        &[good[0], good[1], ("control.tar", &evil), good[2]][..],
        &[good[0], good[1], good[2], ("data.tar", data)],
        &[good[0], good[1], good[2], ("control.tar", &evil)],
        &[good[0], good[2], good[1]],
        &[good[1], good[2]],
        &[("debian-binary", b"3.0\n"), good[1], good[2]],
        &[good[0], good[1], ("data.zip", data)],
        &[good[0], good[1], ("data.tar.zip", data)],
        &[good[0], good[1]],
        &[],
    ] {
        assert!(Deb::read(&ar(members)).is_err(), "{:?}", members.iter().map(|m| m.0).collect::<Vec<_>>());
    }
}

#[test]
fn sizes_of_ar_that_are_none() {
    for size in ["9999999999", "-1", "+5", " 5", "0x10", "", "4294967296", "1e3"] {
        let mut bytes = ar(&[("debian-binary", b"2.0\n")]);
        bytes[8 + 48..8 + 58].copy_from_slice(format!("{size:<10}").as_bytes());
        assert!(Deb::read(&bytes).is_err(), "{size:?}");
    }
    let many: Vec<(&str, &[u8])> = vec![("_x", b""); 10_000];
    assert!(Deb::read(&ar(&many)).is_err());
}

#[test]
fn paths_that_leave_the_root() {
    for path in ["../x", "./../x", "a/../../x", "/etc/passwd", "a/..", "./a/../b", "//x"] {
        refused(&[row(path, b'0', b"")], "which is");
    }
    for path in ["a\nb", &"x".repeat(99)] {
        let rows = [row(path, b'0', b"")];
        assert_eq!(Deb::read(&package(&rows)).is_ok(), !path.contains('\n'), "{path:?}");
    }
    let long = |n: usize| row("././@LongLink", b'L', format!("./{}", "y/".repeat(n)).as_bytes());
    assert_eq!(paths(&[long(400), row("./y", b'5', b"")]), ["y/".repeat(400).trim_end_matches('/')]);
    refused(&[long(2000), row("./y", b'5', b"")], "not an acceptable path");
    let name = row("././@LongLink", b'L', "z".repeat(256).as_bytes());
    refused(&[name, row("./y", b'0', b"")], "255 bytes");
}

#[test]
fn long_names_that_lie() {
    let long = |text: &[u8]| row("././@LongLink", b'L', text);
    refused(&[long(b"../../etc/cron.d/x\0"), row("./x", b'0', b"")], "leads upwards");
    refused(&[long(b"/etc/cron.d/x"), row("./x", b'0', b"")], "absolute");
    refused(&[long(b"a\0b"), row("./x", b'0', b"")], "not an acceptable path");
    refused(&[row("././@LongLink", b'K', b"/etc/shadow"), link("./x", b'1', "./y")], "absolute");
    assert!(Deb::read(&package(&[long(b"a")])).is_err(), "a name of nothing");
    assert_eq!(
        paths(&[long(b"a"), long(b"b"), row("./c", b'0', b"")]),
        ["b"],
        "the last one counts, as for dpkg"
    );
    assert_eq!(paths(&[long(b"a"), row("./c", b'0', b""), row("./d", b'0', b"")]), ["a", "d"]);
}

#[test]
fn a_link_and_then_a_file_through_it() {
    refused(&[link("./a", b'2', "/etc"), row("./a/passwd", b'0', b"x")], "no directory");
    refused(&[link("./a", b'2', "../../.."), row("./a/b/c", b'0', b"x")], "no directory");
    refused(&[row("./a", b'0', b"x"), row("./a/b", b'0', b"x")], "no directory");
    refused(&[row("./a/b", b'0', b"x"), link("./a", b'2', "/etc")], "there twice");
    refused(&[row("./a/", b'5', b""), link("./a", b'2', "/etc"), row("./a/b", b'0', b"")], "there twice");
    refused(&[row("./a", b'0', b"x"), row("./a", b'0', b"y")], "there twice");
    assert_eq!(
        paths(&[row("./a/", b'5', b""), row("./a/", b'5', b""), row("./a/b", b'0', b"")]),
        ["a", "a", "a/b"]
    );
}

#[test]
fn hard_links_out_of_the_package() {
    for target in ["/etc/shadow", "../../etc/shadow", "./etc/shadow", "./x", "", "."] {
        let rows = [row("./etc/", b'5', b""), link("./x", b'1', target)];
        assert!(Deb::read(&package(&rows)).is_err(), "{target:?}");
    }
    refused(&[row("./etc/", b'5', b""), link("./x", b'1', "./etc")], "did not bring");
    assert_eq!(
        paths(&[row("./a", b'0', b"x"), link("./b", b'1', "./a"), link("./c", b'1', "./b")]),
        ["a", "b", "c"]
    );
}

#[test]
fn devices_pipes_sparse_files_and_unknown_kinds() {
    for flag in [b'3', b'4', b'6', b'S', b'M', b'D', b'N', b'V', b'A', b'X', b'Z', 0xFF] {
        refused(&[row("./x", flag, b"")], "which is");
    }
    refused(&[Row { uid: 70_000, ..row("./x", b'0', b"") }], "above 65535");
    let deb = Deb::read(&package(&[Row { mode: 0o7_777_755, ..row("./x", b'0', b"") }])).unwrap();
    assert_eq!(deb.entries[0].mode, 0o7755, "no type in the mode; set-id bits go when the layer is made");
}

/// CVE-2025-62518 and its like: what one reader takes for a header is content for another.
#[test]
fn headers_of_pax_that_would_desynchronise() {
    let hidden = tar_of(&[row("./etc/cron.d/x", b'0', b"* * * * * root x")]);
    let pax = |records: &[Vec<u8>]| row("./PaxHeaders/x", b'x', &records.concat());
    for extension in [
        pax(&[record("size", "0")]),
        pax(&[record("size", "1536")]),
        pax(&[record("path", "../../etc/cron.d/x")]),
        pax(&[record("path", "./etc/cron.d/x")]),
        pax(&[record("linkpath", "/etc/shadow")]),
        // A value with a line break, legal and of the right length: a reader that splits at lines sees another record.
        pax(&[record("comment", "a\n30 path=../../etc/cron.d/evil\n")]),
        pax(&[record("SCHILY.xattr.user.a", "\n15 size=1048576\n")]),
        pax(&[record("SCHILY.xattr.security.capability", "\u{1}\0\0\u{2}")]),
        pax(&[record("GNU.sparse.major", "1"), record("GNU.sparse.realsize", "99999999999")]),
        pax(&[b"99999999999 path=x\n".to_vec()]),
        pax(&[b"nonsense".to_vec()]),
        row("./pax_global_header", b'g', &record("path", "./etc/x")),
    ] {
        refused(&[extension, row("./x", b'0', &hidden)], "pax");
    }
}

#[test]
fn sizes_of_entries_that_are_none() {
    for size in [
        &b"77777777777\0"[..],
        b"-0000000001\0",
        b"9999\0",
        b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
    ] {
        let row = Row { size: Some(size.to_vec()), ..row("./x", b'0', b"abc") };
        assert!(Deb::read(&package(&[row])).is_err(), "{size:?}");
    }
    // Eight exbibytes in the binary form: nothing is allocated for what is only said.
    let mut size = vec![0x80, 0, 0, 0, 0x7F];
    size.resize(12, 0xFF);
    assert!(Deb::read(&package(&[Row { size: Some(size), ..row("./x", b'0', b"abc") }])).is_err());
    let mut broken = package(&[row("./x", b'0', b"abc")]);
    let at = broken.len() - 2048 + 3;
    broken[at] ^= 1;
    assert!(Deb::read(&broken).is_err(), "a header with a wrong checksum");
}

#[test]
fn more_entries_than_a_package_has() {
    let tar: Vec<u8> = {
        let one = &tar_of(&[row("./x", b'5', b"")])[..512];
        one.repeat(ENTRIES_MAX + 1)
    };
    let packed = zstd::encode_all(&tar[..], 1).unwrap();
    drop(tar);
    assert!(packed.len() < 1 << 20, "200 MB of headers in {} bytes", packed.len());
    let bytes = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control()), ("data.tar.zst", &packed)]);
    let error = Deb::read(&bytes).unwrap_err();
    assert!(error.to_string().contains("one too many"), "{error}");
}

/// A file of zeros that is larger than the control part may be, packed by `pack`.
fn bomb(pack: impl FnOnce(Vec<u8>) -> Vec<u8>, ending: &str) -> Vec<u8> {
    let zeros = vec![0; CONTROL_BYTES_MAX as usize + 1];
    let packed = pack(tar_of(&[row("./control", b'0', &zeros)]));
    assert!(packed.len() < 1 << 20, "{} bytes", packed.len());
    let name = format!("control.tar.{ending}");
    ar(&[("debian-binary", b"2.0\n"), (&name, &packed), ("data.tar", &tar_of(&[]))])
}

#[test]
fn bombs_of_every_compression() {
    let xz = |tar: Vec<u8>| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let gz = |tar: Vec<u8>| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    let zst = |tar: Vec<u8>| zstd::encode_all(&tar[..], 3).unwrap();
    for bytes in [bomb(xz, "xz"), bomb(gz, "gz"), bomb(zst, "zst")] {
        assert!(matches!(Deb::read(&bytes), Err(DebError::TooLarge { .. })));
    }
    // A frame that asks for a window of 2 GiB, and one of xz that asks for a dictionary of 4 GiB.
    let window = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8][..], &[0; 64]].concat();
    let dictionary = {
        let mut bytes = xz(tar_of(&[]));
        // The filter's flags: LZMA2, one byte of properties, the size of the dictionary (40 is 4 GiB); then the header's crc.
        let at = bytes.windows(2).position(|pair| pair == [0x21, 0x01]).unwrap() + 2;
        bytes[at] = 40;
        let end = 12 + (usize::from(bytes[12]) + 1) * 4 - 4;
        let sum = crc32(&bytes[12..end]).to_le_bytes();
        bytes[end..end + 4].copy_from_slice(&sum);
        bytes
    };
    for (name, body) in [("data.tar.zst", window), ("data.tar.xz", dictionary)] {
        let bytes = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control()), (name, &body)]);
        assert!(matches!(Deb::read(&bytes), Err(DebError::Member { .. })), "{name}");
    }
    let cut = |ending: &str, body: &[u8]| {
        ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control()), (ending, body)])
    };
    for (ending, body) in [
        ("data.tar.xz", xz(tar_of(&[]))),
        ("data.tar.gz", gz(tar_of(&[]))),
        ("data.tar.zst", zst(tar_of(&[]))),
    ] {
        assert!(Deb::read(&cut(ending, &body)).is_ok(), "{ending}");
        assert!(Deb::read(&cut(ending, &body[..body.len() / 2])).is_err(), "half of {ending}");
        assert!(Deb::read(&cut(ending, b"")).is_err(), "nothing as {ending}");
    }
}

/// The checksum of xz headers.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn control_files_that_are_none() {
    for rows in [
        vec![row("./../x", b'0', b"")],
        vec![row("./a/b", b'0', b"")],
        vec![link("./postinst", b'2', "/etc/shadow")],
        vec![
            row("./control", b'0', b"Package: aa\nArchitecture: all\n"),
            row("./control", b'0', b"Package: bb\n"),
        ],
        vec![row("./control", b'0', b"Architecture: all\n")],
        vec![row("./control", b'0', b"\xFF\xFE")],
        vec![row("./pax", b'x', &record("path", "postinst")), row("./control", b'0', b"")],
    ] {
        let control = tar_of(&rows);
        let bytes = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &tar_of(&[]))]);
        assert!(Deb::read(&bytes).is_err(), "{}", String::from_utf8_lossy(&rows[0].path));
    }
}
