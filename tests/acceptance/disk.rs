//! A disk that fills up while a model arrives: a real one of 8 MB, mounted for one command alone.

use crate::net::{Reply, Site};
use e2e::built;
use std::io::Write as _;
use std::process::{Command, Output};

/// Runs a script with a small disk of its own at `$1`, in a namespace that goes with it. `None` where this machine lets
/// nobody do that.
fn on_a_small_disk(script: &str, state: &std::path::Path) -> Option<Output> {
    let namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command
            .arg(format!("mount -t tmpfs -o size=8m none \"$1\" || exit 99\n{script}"))
            .arg("sh")
            .arg(state);
        command.env("BACKPLANE_STATE", state).env("NO_COLOR", "1").env("PROGRAM", &built().program);
        command.output().ok()
    };
    namespace("true").filter(|output| output.status.success())?;
    namespace(script)
}

#[test]
fn a_disk_that_fills_up_while_pulling_is_named_and_nothing_half_is_installed() {
    // Its length is not told, so nobody can know before that it will not fit.
    let site = Site::plain(|_| Reply { no_length: true, ..Reply::of(vec![7; 32 << 20]) });
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "\"$PROGRAM\" pull --yes {}/big.gguf --name big --json; code=$?\n\
         \"$PROGRAM\" ls -q; ls \"$1/models/cards\" \"$1/models/blobs/sha256\" 2>/dev/null | grep -v : \nexit $code",
        site.url
    );
    let Some(output) = on_a_small_disk(&script, folder.path()) else {
        // Not by `eprintln`, which a test that passes does not show.
        writeln!(
            std::io::stderr(),
            "\nNOT TESTED: a disk that fills up while pulling. This machine lets nobody mount a file system in a namespace \
             of their own; run the tests as root"
        )
        .unwrap();
        return;
    };
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    let error: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "disk_full", "{err}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("make room and pull again"), "{message}");
    assert_eq!(out.trim(), "", "something is installed");
}
