//! Following and reading the output of instances, with folders as their server writes them.

use super::*;
use kiln_model::frame::{Frame, Stream};
use kiln_model::limits::LOG_LINE_BYTES_MAX;
use proptest::prelude::*;
use std::fs;
use std::time::{Duration, UNIX_EPOCH};

/// Writes the folder of an instance as its server would.
fn instance(state: &Path, sequence: u64, service: &str, release: u64) -> PathBuf {
    let folder = state.join("instances").join(format!("{service}-{sequence}"));
    fs::create_dir_all(&folder).unwrap();
    let spec = serde_json::json!({
        "id": format!("{service}-{sequence}"), "env": "shop/production",
        "release": release, "service": service, "commit": "ab".repeat(20),
        "image": Digest::of(b"image"), "ignored": 1,
    });
    fs::write(folder.join("spec.json"), spec.to_string()).unwrap();
    folder
}

fn frame_of(sequence: u64, stream: Stream, line: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    Frame { at: Wall(1000 + sequence), sequence, dropped: 0, stream, line: line.to_vec() }.encode(&mut out);
    out
}

fn frame(sequence: u64, text: &str) -> Vec<u8> {
    frame_of(sequence, Stream::Out, text.as_bytes())
}

fn texts(folder: &LogFolder, filter: &Filter) -> Vec<String> {
    let mut out = vec![];
    folder
        .read(filter, &mut |line| {
            out.push(format!("{}: {}", line.instance, line.line));
            ControlFlow::Continue(())
        })
        .unwrap();
    out
}

fn only(last: usize) -> Filter {
    Filter { last: Some(last), ..Filter::default() }
}

/// Writes as an instance's pid 1 does: two files that take turns.
struct Writer {
    folder: PathBuf,
    current: usize,
    bytes: [Vec<u8>; 2],
    next: u64,
    bytes_max: usize,
}

impl Writer {
    fn new(folder: PathBuf, bytes_max: usize) -> Self {
        Self { folder, current: 0, bytes: Default::default(), next: 0, bytes_max }
    }

    fn write(&mut self, text: &str) {
        use std::io::Write;
        let frame = frame(self.next, text);
        self.next += 1;
        let mut is_empty = self.bytes[self.current].is_empty();
        if self.bytes[self.current].len() + frame.len() > self.bytes_max {
            self.current = 1 - self.current;
            self.bytes[self.current].clear();
            is_empty = true;
        }
        self.bytes[self.current].extend(&frame);
        let path = self.folder.join(["out.0", "out.1"][self.current]);
        let mut options = fs::OpenOptions::new();
        options.create(true);
        match is_empty {
            true => options.write(true).truncate(true),
            false => options.append(true),
        };
        options.open(path).unwrap().write_all(&frame).unwrap();
    }
}

/// That every line from 0 to `count` is there once and in order, or counted in a line of the reader's.
fn account(lines: &[Line], count: u64) {
    let mut next = 0;
    for line in lines {
        if line.stream == "kiln" {
            assert!(line.line.ends_with("dropped: the black box or its disk was full"), "{line:?}");
            next += line.line.split(' ').next().unwrap().parse::<u64>().unwrap();
            assert_eq!(line.sequence + 1, next);
        } else {
            assert_eq!((line.sequence, &line.line), (next, &format!("line {next}")));
            next += 1;
        }
    }
    assert_eq!(next, count);
}

#[test]
fn filters_choose_and_instances_are_merged_by_time() {
    let state = tempfile::tempdir().unwrap();
    let logs = LogFolder::new(state.path());
    assert_eq!(texts(&logs, &Filter::default()), [""; 0], "a state folder without instances");
    let web = instance(state.path(), 1, "web", 1);
    let api = instance(state.path(), 2, "api", 2);
    fs::write(web.join("out.0"), [frame(0, "zero"), frame(1, "two")].concat()).unwrap();
    fs::write(api.join("out.0"), frame(0, "one")).unwrap();
    fs::write(web.join("exit.json"), r#"{"at":1009,"exit":"status","code":3}"#).unwrap();
    let all = ["api-2: one", "web-1: zero", "web-1: two", "web-1: exited with status 3"];
    let table: [(Filter, &[&str]); 17] = [
        (Filter::default(), &all),
        (Filter { service: ServiceName::new("api").ok(), ..Filter::default() }, &all[..1]),
        (Filter { release: Some(ReleaseNumber(2)), ..Filter::default() }, &all[..1]),
        (Filter { instance: "api-2".parse().ok(), ..Filter::default() }, &all[..1]),
        (Filter { env: EnvName::new("production").ok(), ..Filter::default() }, &all),
        (Filter { env: EnvName::new("staging").ok(), ..Filter::default() }, &[]),
        (Filter { grep: Some("two".into()), ..Filter::default() }, &all[2..3]),
        (Filter { grep: Some("status".into()), ..Filter::default() }, &all[3..]),
        (Filter { since: Some(Wall(1001)), ..Filter::default() }, &all[2..]),
        (only(2), &all[2..]),
        (only(0), &[]),
        (only(usize::MAX), &all),
        (Filter { grep: Some("o".into()), ..only(1) }, &all[2..3]),
        (Filter { commit: Some("abab".into()), ..Filter::default() }, &all),
        (Filter { commit: Some("ff".into()), ..Filter::default() }, &[]),
        (Filter { project: ProjectName::new("shop").ok(), ..only(9) }, &all),
        (Filter { project: ProjectName::new("other").ok(), ..Filter::default() }, &[]),
    ];
    for (filter, expected) in table {
        assert_eq!(texts(&logs, &filter), expected, "{filter:?}");
    }
    let mut first = vec![];
    let stop_at_once = &mut |line: &Line| {
        first.push(line.line.clone());
        ControlFlow::Break(())
    };
    logs.read(&Filter::default(), stop_at_once).unwrap();
    assert_eq!(first, ["one"]);
    assert_eq!(logs.tail_of(&"web-1".parse().unwrap(), 2), ["two", "exited with status 3"]);
    assert_eq!(logs.tail_of(&"web-9".parse().unwrap(), 5), [""; 0]);
}

#[test]
fn what_is_no_instance_or_not_its_own_is_left_out() {
    let state = tempfile::tempdir().unwrap();
    let web = instance(state.path(), 1, "web", 1);
    fs::write(web.join("out.0"), frame(0, "mine")).unwrap();
    let copy = state.path().join("instances/web-2");
    fs::create_dir_all(&copy).unwrap();
    fs::copy(web.join("spec.json"), copy.join("spec.json")).unwrap();
    fs::write(copy.join("out.0"), frame(0, "not mine")).unwrap();
    fs::write(state.path().join("instances/web-3"), "a file").unwrap();
    fs::create_dir_all(state.path().join("instances/no instance")).unwrap();
    assert_eq!(texts(&LogFolder::new(state.path()), &Filter::default()), ["web-1: mine"]);
}

#[test]
fn the_end_is_said_once() {
    let state = tempfile::tempdir().unwrap();
    let web = instance(state.path(), 1, "web", 1);
    let note = frame_of(1, Stream::Supervisor, b"exited with status 3");
    fs::write(web.join("out.0"), [frame(0, "bye"), note].concat()).unwrap();
    fs::write(web.join("exit.json"), r#"{"at":1001,"exit":"status","code":3}"#).unwrap();
    let logs = LogFolder::new(state.path());
    assert_eq!(texts(&logs, &Filter::default()), ["web-1: bye", "web-1: exited with status 3"]);
    // A program that says the same is not the supervisor.
    let claim = frame(1, "exited with status 3");
    fs::write(web.join("out.0"), [frame(0, "bye"), claim].concat()).unwrap();
    assert_eq!(texts(&logs, &Filter::default()).len(), 3);
}

#[test]
fn following_shows_each_line_once_also_when_the_files_take_turns() {
    let state = tempfile::tempdir().unwrap();
    let mut cursor = Cursor::new(LogFolder::new(state.path()));
    let mut next = |filter: &Filter| -> Vec<String> {
        cursor.next_lines(filter).unwrap().into_iter().map(|line| line.line).collect()
    };
    let all = Filter::default();
    assert_eq!(next(&all), [""; 0], "no folder yet");
    let web = instance(state.path(), 1, "web", 1);
    fs::write(web.join("exit.json"), "").unwrap();
    fs::write(web.join("out.0"), [frame(0, "a"), frame(1, "b")].concat()).unwrap();
    assert_eq!(next(&only(1)), ["b"]);
    assert_eq!(next(&all), [""; 0]);
    fs::write(web.join("out.1"), &frame(2, "c")[..30]).unwrap();
    assert_eq!(next(&all), [""; 0], "half of a line");
    fs::write(web.join("out.1"), frame(2, "c")).unwrap();
    assert_eq!(next(&all), ["c"]);
    // The older file is emptied and written anew. Its two lines were seen: nothing is missing.
    fs::write(web.join("out.0"), [frame(3, "d"), frame(4, "e")].concat()).unwrap();
    assert_eq!(next(&all), ["d", "e"]);
    // Twice round between two looks.
    fs::write(web.join("out.1"), frame(6, "g")).unwrap();
    fs::write(web.join("out.0"), frame(7, "h")).unwrap();
    assert_eq!(next(&all), ["1 line was dropped: the black box or its disk was full", "g", "h"]);
    fs::write(web.join("exit.json"), r#"{"at":2000,"exit":"status","code":0}"#).unwrap();
    assert_eq!(next(&all), ["exited with status 0"]);
    assert_eq!(next(&all), [""; 0]);
}

#[test]
fn a_cursor_gives_so_many_lines_at_a_time_and_loses_none() {
    let state = tempfile::tempdir().unwrap();
    let count = LINES_AT_ONCE as u64 + 500;
    for n in 1..=2 {
        let bytes: Vec<u8> = (0..count).flat_map(|n| frame(n, &format!("line {n}"))).collect();
        fs::write(instance(state.path(), n, "web", 1).join("out.0"), bytes).unwrap();
    }
    let mut cursor = Cursor::new(LogFolder::new(state.path()));
    let mut all = vec![];
    loop {
        let lines = cursor.next_lines(&Filter::default()).unwrap();
        assert!(lines.len() <= LINES_AT_ONCE);
        if lines.is_empty() {
            break;
        }
        all.extend(lines);
    }
    assert!(all.is_sorted_by_key(|line| (line.at, line.instance.clone(), line.sequence)));
    let (one, two): (Vec<Line>, Vec<Line>) = all.into_iter().partition(|l| l.instance.as_str() == "web-1");
    account(&one, count);
    account(&two, count);
}

/// A writer that takes turns as fast as it can, and a reader beside it.
#[test]
fn every_line_is_seen_once_or_counted_while_it_is_written() {
    let state = tempfile::tempdir().unwrap();
    let folder = instance(state.path(), 1, "web", 1);
    let count = 20_000;
    let writing = std::thread::spawn(move || {
        let mut writer = Writer::new(folder.clone(), 20_000);
        (0..count).for_each(|n| writer.write(&format!("line {n}")));
        fs::write(folder.join(".exit.json"), r#"{"at":99999,"exit":"signal","signal":9}"#).unwrap();
        fs::rename(folder.join(".exit.json"), folder.join("exit.json")).unwrap();
    });
    let mut cursor = Cursor::new(LogFolder::new(state.path()));
    let mut all = vec![];
    while all.last().is_none_or(|line: &Line| line.line != "killed by signal 9") {
        all.extend(cursor.next_lines(&Filter::default()).unwrap());
    }
    writing.join().unwrap();
    assert_eq!(all.pop().map(|line| line.sequence), Some(count));
    account(&all, count);
}

/// Both files are written while they are read: what one of them skips is in the other one.
#[test]
fn no_line_counts_as_lost_before_both_files_were_looked_at() {
    let state = tempfile::tempdir().unwrap();
    let web = instance(state.path(), 1, "web", 1);
    fs::write(web.join("out.0"), [frame(0, "line 0"), frame(1, "line 1")].concat()).unwrap();
    let mut black_box = BlackBox::new(web.clone());
    black_box.look();
    let mut seen = vec![black_box.next_entry().unwrap().text];
    fs::write(web.join("out.1"), frame(2, "line 2")).unwrap();
    fs::write(web.join("out.0"), [frame(3, "line 3"), frame(4, "line 4")].concat()).unwrap();
    seen.extend(std::iter::from_fn(|| black_box.next_entry()).map(|entry| entry.text));
    assert_eq!(seen, ["line 0", "line 1", "line 2", "line 3", "line 4"]);
}

#[test]
fn long_lines_do_not_end_at_the_window() {
    let state = tempfile::tempdir().unwrap();
    let web = instance(state.path(), 1, "web", 1);
    let line = |n: u64| format!("{n} {}", "x".repeat(LOG_LINE_BYTES_MAX - 8 - n as usize));
    let bytes: Vec<u8> = (0..50).flat_map(|n| frame(n, &line(n))).collect();
    fs::write(web.join("out.0"), &bytes).unwrap();
    let logs = LogFolder::new(state.path());
    let seen = texts(&logs, &Filter::default());
    assert!(seen.len() == 50 && (0..50).all(|n| seen[n].ends_with(&line(n as u64))));
    // A damaged region that is larger than the window.
    let mut damaged = bytes.clone();
    let length = bytes.len() / 2;
    damaged[100..length].fill(0);
    fs::write(web.join("out.0"), &damaged).unwrap();
    let seen = texts(&logs, &Filter::default());
    let lost = 51 - seen.len();
    assert_eq!(seen[0], format!("web-1: {lost} lines were lost: the black box is damaged"));
    assert!((20..30).contains(&lost) && (lost..50).all(|n| seen[n + 1 - lost].ends_with(&line(n as u64))));
}

#[test]
fn what_ended_before_is_not_read() {
    let state = tempfile::tempdir().unwrap();
    let old = instance(state.path(), 1, "web", 1);
    fs::write(old.join("out.0"), (0..5000).flat_map(|n| frame(n, "old")).collect::<Vec<u8>>()).unwrap();
    fs::write(old.join("exit.json"), r#"{"at":1001,"exit":"status","code":0}"#).unwrap();
    for name in ["out.0", "exit.json"] {
        let file = fs::File::options().append(true).open(old.join(name)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_millis(1001)).unwrap();
    }
    let new = instance(state.path(), 2, "web", 2);
    fs::write(new.join("out.0"), [frame(3000, "x"), frame(3001, "new"), frame(3002, "newer")].concat())
        .unwrap();
    let logs = LogFolder::new(state.path());
    // By the times in its lines the old one would be among the newest: it is not even opened.
    assert_eq!(texts(&logs, &only(2)), ["web-2: new", "web-2: newer"]);
    let since = Filter { since: Some(Wall(4001)), ..Filter::default() };
    assert_eq!(texts(&logs, &since), ["web-2: new", "web-2: newer"]);
    assert_eq!(texts(&logs, &only(6000)).len(), 5000 + 1 + 4);
}

/// What the reader says of itself stands for what is not there: the sequence has no holes.
fn subset(lines: &[Line], expected: &[String]) -> Result<(), TestCaseError> {
    let mut next = 0;
    for line in lines {
        prop_assert!(line.sequence >= next, "{lines:?}");
        next = line.sequence + 1;
        match line.stream.as_str() {
            "out" => prop_assert_eq!(Some(&line.line), expected.get(line.sequence as usize)),
            _ => prop_assert!(
                line.line.contains("black box") || line.line == "exited with status 0",
                "a line in the supervisor's name: {:?}",
                line
            ),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn damage_hides_lines_and_never_invents_any(
        lengths in prop::collection::vec(0_usize..400, 1..20),
        split in any::<prop::sample::Index>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        is_over in any::<bool>(),
    ) {
        let state = tempfile::tempdir().unwrap();
        let web = instance(state.path(), 1, "web", 1);
        let text = |n: usize, length: usize| format!("line {n} {}", "y".repeat(length));
        let expected: Vec<String> = lengths.iter().enumerate().map(|(n, length)| text(n, *length)).collect();
        let frames: Vec<Vec<u8>> = expected.iter().enumerate().map(|(n, text)| frame(n as u64, text)).collect();
        let split = split.index(frames.len() + 1);
        let mut files = [frames[..split].concat(), frames[split..].concat()];
        if is_over {
            fs::write(web.join("exit.json"), r#"{"at":9000,"exit":"status","code":0}"#).unwrap();
        }
        let mut cursor = Cursor::new(LogFolder::new(state.path()));
        let mut followed = vec![];
        for round in 0..2 {
            for (name, bytes) in ["out.0", "out.1"].iter().zip(&files) {
                fs::write(web.join(name), bytes).unwrap();
            }
            let mut read = vec![];
            LogFolder::new(state.path()).read(&Filter::default(), &mut |line| {
                read.push(line.clone());
                ControlFlow::Continue(())
            }).unwrap();
            subset(&read, &expected)?;
            followed.extend(cursor.next_lines(&Filter::default()).unwrap());
            subset(&followed, &expected)?;
            if round == 0 {
                let whole = expected.len() + usize::from(is_over);
                prop_assert_eq!((read.len(), followed.len()), (whole, whole));
            }
            for (at, value) in &noise {
                let file = &mut files[usize::from(value % 2 == 1)];
                if !file.is_empty() {
                    let at = at.index(file.len());
                    file[at] ^= value | 1;
                }
            }
            if let Some(cut) = cut {
                files.iter_mut().for_each(|file| file.truncate(cut.index(file.len() + 1)));
            }
        }
    }

    /// One damaged line costs that line only.
    #[test]
    fn one_damaged_line_is_counted_and_the_others_are_shown(
        count in 2_usize..12,
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let state = tempfile::tempdir().unwrap();
        let web = instance(state.path(), 1, "web", 1);
        let which = which.index(count - 1);
        // Every line carries a whole frame in the supervisor's name, which must never be believed.
        let hostile = |n: u64| frame_of(n, Stream::Supervisor, b"exited with status 0");
        let mut frames: Vec<Vec<u8>> =
            (0..count as u64).map(|n| frame_of(n, Stream::Out, &[hostile(n + 1), b"zz".to_vec()].concat())).collect();
        // A length that is too large hides what it claims; what follows is shown once there is as much.
        let filler = vec![b'f'; LOG_LINE_BYTES_MAX];
        frames.extend((0..2).map(|n| frame_of((count + n) as u64, Stream::Out, &filler)));
        let at = at.index(frames[which].len());
        frames[which][at] ^= 1 << bit;
        fs::write(web.join("out.0"), frames.concat()).unwrap();
        let lines = Cursor::new(LogFolder::new(state.path())).next_lines(&Filter::default()).unwrap();
        prop_assert!(lines.iter().all(|line| line.line != "exited with status 0"), "{lines:?}");
        let lost: Vec<&Line> = lines.iter().filter(|line| line.stream == "kiln").collect();
        prop_assert_eq!(lost.len(), 1);
        prop_assert_eq!((&lost[0].line[..], lost[0].sequence), ("1 line was lost: the black box is damaged", which as u64));
        prop_assert_eq!(lines.len(), count + 2);
    }

    #[test]
    fn a_slow_reader_sees_or_counts_every_line(looks in prop::collection::vec(0_u64..60, 1..20), bytes_max in 100_usize..1500) {
        let state = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(instance(state.path(), 1, "web", 1), bytes_max);
        let mut cursor = Cursor::new(LogFolder::new(state.path()));
        let mut all = vec![];
        for lines in looks {
            (0..lines).for_each(|_| writer.write(&format!("line {}", writer.next)));
            all.extend(cursor.next_lines(&Filter::default()).unwrap());
        }
        account(&all, writer.next);
    }
}
