//! Runs the command in a folder of its own and compares what it says with a file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A model of the official code with small random weights.
pub(crate) const MODEL: &str = "mllmseg-qwen2-res";
/// The same with unmerged LoRA, which says "not found" to some phrases.
pub(crate) const LORA_MODEL: &str = "mllmseg-internlm2-gres-lora";

/// An empty folder to run the command in.
pub(crate) struct Desk {
    folder: TempDir,
}

/// What a run has left.
pub(crate) struct Ran {
    /// Exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// The fixtures of the library's tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../refseg/tests/fixtures")
        .join(name)
}

impl Desk {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A copy of a fixture, under its own name.
    pub(crate) fn with(self, name: &str) -> Self {
        let file = Path::new(name).file_name().expect("a name");
        fs::copy(fixture(name), self.path().join(file)).expect("a fixture to copy");
        self
    }

    /// Puts a file here.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).expect("a file to write");
    }

    /// Names of everything here, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("a folder to list");
        let mut names: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    /// The command, ready to run here: no settings of the caller's environment, no colours.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refseg"));
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REFSEG_"))
        {
            command.env_remove(name);
        }
        command
            .args(args)
            .current_dir(self.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs it.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args))
    }

    /// Runs it and reads the one JSON document that it prints.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(
            ran.stdout.lines().count(),
            1,
            "one document: {}",
            ran.stdout
        );
        serde_json::from_str(&ran.stdout).expect("JSON")
    }
}

impl Ran {
    /// Runs a command to its end.
    pub(crate) fn of(mut command: Command) -> Self {
        let output = command.output().expect("the command starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code().expect("it ended by itself"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Everything that was seen, as snapshots have it.
    pub(crate) fn transcript(&self, args: &[&str]) -> String {
        let Self {
            code,
            stdout,
            stderr,
        } = self;
        let fixtures = fixture("");
        let fixtures = fixtures.display().to_string();
        let quoted = |arg: &&str| {
            let is_plain = !arg.is_empty() && !arg.contains(' ');
            if is_plain {
                (*arg).to_owned()
            } else {
                format!("\"{arg}\"")
            }
        };
        let shown: Vec<String> = args.iter().map(quoted).collect();
        let shown = shown.join(" ");
        let text = format!("$ refseg {shown}\n[exit {code}]\n{stdout}{stderr}");
        let text = text.replace(fixtures.trim_end_matches('/'), "FIXTURES");
        text.lines()
            .map(without_times)
            .collect::<Vec<_>>()
            .join("\n")
            + "\n"
    }
}

/// Times differ from run to run.
fn without_times(line: &str) -> &str {
    if line.starts_with("load ") {
        "load [times]"
    } else {
        line
    }
}

/// Compares a text with `tests/snapshots/NAME`, or writes it there if `REFSEG_BLESS` is set.
pub(crate) fn check_snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots")
        .join(name);
    if std::env::var_os("REFSEG_BLESS").is_some() {
        fs::write(&path, text).expect("a snapshot to write");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == text,
        "{} differs; set REFSEG_BLESS=1 to accept this:\n{text}\n--- instead of:\n{expected}",
        path.display(),
    );
}
