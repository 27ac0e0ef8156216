//! What the command says about itself.

use crate::desk::{Desk, check_snapshot};

#[test]
fn help_screens() {
    let desk = Desk::new();
    let commands = [
        "", "segment", "sam", "ask", "info", "init", "convert", "bench", "eval", "score", "scenes",
        "train",
    ];
    for command in commands {
        let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let ran = desk.run(&args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        let name = if command.is_empty() {
            "refseg"
        } else {
            command
        };
        check_snapshot(&format!("help-{name}.txt"), &ran.transcript(&args));
    }
}

#[test]
fn without_a_command_it_shows_help_and_says_wrong_usage() {
    let ran = Desk::new().run(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("Usage: refseg"));
}

#[test]
fn it_knows_its_version() {
    let ran = Desk::new().run(&["--version"]);
    assert_eq!(
        ran.stdout,
        format!("refseg {}\n", env!("CARGO_PKG_VERSION"))
    );
}
