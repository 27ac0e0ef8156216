//! What goes wrong: a sentence each, the right exit code, and nothing written.

use crate::desk::{Desk, LORA_MODEL, MODEL, check_snapshot, fixture};

/// A PNG header that claims so many pixels, and nothing behind it.
fn huge_png() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    png.extend(60_000u32.to_be_bytes());
    png.extend(60_000u32.to_be_bytes());
    png.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
    png
}

/// A file of zeros as NumPy writes it.
fn npy(shape: &str, count: usize) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let mut bytes = b"\x93NUMPY\x01\0\x76\0".to_vec();
    bytes.extend(format!("{header:<117}\n").as_bytes());
    bytes.extend(vec![0; 4 * count]);
    bytes
}

/// A desk with good and bad pictures, and with folders in the way.
fn desk() -> Desk {
    let desk = Desk::new()
        .with(&format!("{MODEL}/image.png"))
        .with("images/bad_format.gif");
    desk.write("empty.png", b"");
    desk.write("huge.png", &huge_png());
    desk.write("small.npy", &npy("(2, 2)", 4));
    desk.write("two.npy", &npy("(2, 64, 64)", 2 * 64 * 64));
    let picture = std::fs::read(fixture(MODEL).join("image.png")).expect("the fixture's picture");
    desk.write("truncated.png", &picture[..picture.len() / 2]);
    for folder in ["taken", "no-weights", "not-a-config"] {
        std::fs::create_dir(desk.path().join(folder)).expect("a folder");
    }
    desk.write("taken/file", b"");
    desk.write("not-a-config/config.json", b"{\"llm_config\": {}}");
    std::fs::copy(
        fixture(MODEL).join("config.json"),
        desk.path().join("no-weights/config.json"),
    )
    .expect("a config");
    desk
}

#[test]
fn failures_are_sentences_and_leave_nothing() {
    let desk = desk();
    let before = desk.names();
    let model = fixture(MODEL).display().to_string();
    let lora = fixture(LORA_MODEL).display().to_string();
    let (model, lora) = (model.as_str(), lora.as_str());
    let sam = fixture("sam/sam-vit-tiny").display().to_string();
    let sam = &["sam", "image.png", "-m", &sam][..];
    let sam = |args: &[&'static str]| [sam, args].concat();
    let cases: &[(i32, &[&str])] = &[
        (2, &["segment", "image.png"]),
        (2, &["segment", "image.png", ""]),
        (2, &["segment", "image.png", "a ring", " "]),
        (2, &["segment", "image.png", "a ring", "--device", "abacus"]),
        (2, &["segment", "image.png", "a ring", "--threads", "0"]),
        (2, &["segment", "image.png", "a ring", "-q", "-v"]),
        (1, &["segment", "missing.png", "a ring"]),
        (1, &["segment", "taken", "a ring", "--no-overlay"]),
        (1, &["segment", "empty.png", "a ring"]),
        (1, &["segment", "truncated.png", "a ring"]),
        (1, &["segment", "bad_format.gif", "a ring"]),
        (1, &["segment", "huge.png", "a ring"]),
        (
            1,
            &["segment", "image.png", "a ring", "--max-pixels", "1000"],
        ),
        (
            1,
            &["segment", "image.png", "a ring", "-m", "no-such-model"],
        ),
        (1, &["segment", "image.png", "a ring", "-m", "taken"]),
        (1, &["segment", "image.png", "a ring", "-m", "not-a-config"]),
        (1, &["segment", "image.png", "a ring", "-m", "no-weights"]),
        (
            1,
            &[
                "segment",
                "image.png",
                "a ring",
                "-m",
                model,
                "--overlay",
                "no-such-folder/o.png",
            ],
        ),
        (
            1,
            &[
                "segment",
                "image.png",
                "a ring",
                "-m",
                model,
                "--overlay",
                "image.png",
            ],
        ),
        (
            1,
            &[
                "segment",
                "image.png",
                "a ring",
                "-m",
                model,
                "--probs",
                "taken",
            ],
        ),
        (1, &["info", "no-such-model"]),
        (1, &["info", "no-weights"]),
        (2, &["init", "internvl9-1t", "new"]),
        (1, &["init", "internvl2_5-1b", "taken"]),
        (1, &["convert", "no-such-model", "new"]),
        (1, &["convert", model, "taken"]),
        (1, &["convert", lora, "new"]),
        (1, &["bench", "no-such-model"]),
        (1, &["bench", model, "--image", "missing.png"]),
        (1, &["eval", "--size", "7"]),
        (1, &["eval", "-m", "no-such-model", "--count", "1"]),
        (2, &["eval", "--protocol", "wishful"]),
        (1, &["scenes", "new", "--count", "0"]),
        (1, &["scenes", "new", "--count", "3", "--size", "9"]),
        (
            2,
            &[
                "scenes", "new", "--count", "3", "--split", "unseen", "--val", "1",
            ],
        ),
        (
            1,
            &["train", "--out", "new", "--pictures", "3", "--workers", "2"],
        ),
        (1, &["train", "--out", "new", "--learning-rate=-1"]),
        (1, &["train", "--out", "image.png"]),
    ];
    let sam_cases = [
        (2, sam(&[])),
        (2, sam(&["--point", "3"])),
        (2, sam(&["--box", "1,2,3,x"])),
        (
            2,
            sam(&["--box", "1,2,3,4", "--box", "1,2,3,4", "--not", "1,2"]),
        ),
        (2, vec!["sam", "image.png", "--point", "1,2"]),
        (1, sam(&["--point", "-1,2"])),
        (1, sam(&["--point", "320.5,2"])),
        (1, sam(&["--box", "9,2,3,4"])),
        (1, sam(&["--point", "1,2", "--mask-input", "missing.npy"])),
        (1, sam(&["--point", "1,2", "--mask-input", "image.png"])),
        (1, sam(&["--point", "1,2", "--mask-input", "small.npy"])),
        (1, sam(&["--point", "1,2", "--mask-input", "two.npy"])),
        (1, sam(&["--point", "1,2", "--logits", "image.png"])),
        (1, sam(&["--point", "1,2", "--low-res", "taken"])),
        (1, sam(&["--point", "1,2", "--decoder", "missing.pt"])),
        (1, vec!["sam", "missing.png", "-m", model, "--point", "1,2"]),
        (
            1,
            vec!["sam", "image.png", "-m", "sam_vit_b.pth", "--point", "1,2"],
        ),
        (1, vec!["sam", "image.png", "-m", "taken", "--point", "1,2"]),
        (
            1,
            vec!["sam", "image.png", "-m", "image.png", "--point", "1,2"],
        ),
        (1, vec!["sam", "image.png", "-m", model, "--point", "1,2"]),
    ];
    let llava = fixture("llava/llava-next-tiny").display().to_string();
    let ask_cases = [
        (2, vec!["ask", "image.png", "What is this?"]),
        (2, ask(&llava, " ", &[])),
        (2, ask(&llava, "What is this?", &["--max-tokens", "0"])),
        (1, ask("no-such-model", "What is this?", &[])),
        (1, ask("taken", "What is this?", &[])),
        (1, ask("no-weights", "What is this?", &[])),
        (1, ask(&llava, "What is this?", &["--adapter", "taken"])),
    ];
    let sam_cases = sam_cases
        .iter()
        .chain(&ask_cases)
        .map(|(code, args)| (*code, &args[..]));
    let mut transcript = String::new();
    for (code, args) in cases.iter().copied().chain(sam_cases) {
        let ran = desk.run(args);
        transcript += &ran.transcript(args);
        transcript.push('\n');
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{transcript}");
        assert_eq!(desk.names(), before, "{args:?} has left something");
    }
    check_snapshot("failures.txt", &transcript);
}

#[test]
fn a_phrase_of_a_book_is_refused_at_once() {
    let desk = desk();
    let ran = desk.run(&["segment", "image.png", &"word ".repeat(20_000)]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.stderr,
        "error: a phrase is 100000 bytes long, and at most 65536 are read\n"
    );
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let model = fixture(MODEL);
    let desk = Desk::new();
    let mut command = desk.command(&["info", &model.display().to_string()]);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}

fn ask<'a>(model: &'a str, question: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["ask", "image.png", question, "-m", model], rest].concat()
}
