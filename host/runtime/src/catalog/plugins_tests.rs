//! Which files are loaded, in which order, and how long that may take.

use super::*;
use crate::survival::library::slow;
use std::time::Instant;

/// Longer than any test.
const HANGS: &str = "INIT_MS=3600000";

fn options(dir: &Path, limit: Duration) -> PluginOptions {
    let isolation = [("*".to_owned(), Isolation::InProcess)].into();
    PluginOptions { dirs: vec![dir.to_owned()], isolation, load_timeout: limit, ..PluginOptions::default() }
}

fn files(found: &[Found]) -> Vec<String> {
    found.iter().map(Found::file).collect()
}

/// Threads of this process that load a plugin with such an id.
fn loading(id: &str) -> usize {
    let name = format!("load {id}");
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|other| name.starts_with(other.trim())).count()
}

#[test]
fn plugins_that_hang_cost_one_time_out_together_and_are_entered_once() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["1", "2", "3", "4", "5"] {
        slow(dir.path(), &format!("lib{file}.so"), &format!("hang.{file}"), &[HANGS]);
    }
    slow(dir.path(), "lib6.so", "test.well", &[]);
    let limit = Duration::from_secs(2);
    let options = options(dir.path(), limit);
    let began = Instant::now();
    let found = discover(&options, &[], &Arc::default());
    let took = began.elapsed();
    assert!(limit <= took && took < limit * 2, "{took:?}");
    assert_eq!(files(&found), ["lib1.so", "lib2.so", "lib3.so", "lib4.so", "lib5.so", "lib6.so"]);
    for hung in &found[..5] {
        assert!(hung.plugin.is_none() && hung.problem.as_ref().unwrap().contains("until the host restarts"));
    }
    assert!(found[5].plugin.is_some(), "{:?}", found[5].problem);

    let began = Instant::now();
    let again = discover(&options, &found, &Arc::default());
    assert!(began.elapsed() < limit, "{:?}", began.elapsed());
    assert_eq!((files(&again), &again[0].problem), (files(&found), &found[0].problem));
    assert_eq!(loading("hang.1"), 1, "no second thread went into it");
}

#[test]
fn of_files_with_one_id_the_first_that_loads_is_used() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    slow(first.path(), "liba.so", "same.id", &[HANGS]);
    slow(second.path(), "libb.so", "same.id", &["VERSION=\"2.0.0\""]);
    slow(second.path(), "libc.so", "same.id", &["VERSION=\"3.0.0\""]);
    slow(second.path(), "libd.so", "other.id", &[]);
    std::fs::write(second.path().join("libe.so"), "text").unwrap();
    let mut options = options(first.path(), Duration::from_millis(500));
    options.dirs.push(second.path().to_owned());
    options.files.push(second.path().join("libd.so"));
    let found = discover(&options, &[], &Arc::default());
    assert_eq!(files(&found), ["libd.so", "liba.so", "libb.so", "libc.so", "libe.so"]);
    let loaded: Vec<_> = found.iter().filter(|found| found.plugin.is_some()).map(Found::file).collect();
    assert_eq!(loaded, ["libd.so", "libb.so"]);
    assert_eq!((found[3].shadowed_by.as_deref(), &found[3].problem), (Some("libb.so"), &None));
    let changes = changes(&[], &found);
    assert_eq!(changes.loaded, ["other.id", "same.id"]);
    let refused: Vec<_> = changes.refused.iter().map(|refused| refused.file.as_str()).collect();
    assert_eq!(refused, ["liba.so", "libe.so"], "one that is not needed is not refused");

    // A file that comes before it is no reason to load a plugin twice.
    slow(first.path(), "lib0.so", "other.id", &[]);
    options.files.clear();
    let again = discover(&options, &found, &Arc::default());
    let loaded: Vec<_> = again.iter().filter(|found| found.plugin.is_some()).map(Found::file).collect();
    assert_eq!(loaded, ["libb.so", "libd.so"]);
    assert_eq!(super::changes(&found, &again).loaded, [""; 0]);
}

#[test]
fn a_file_that_was_replaced_is_told_and_the_loaded_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "liba.so", "replaced.id", &[]);
    let options = options(dir.path(), Duration::from_secs(20));
    let before = discover(&options, &[], &Arc::default());
    let same = discover(&options, &before, &Arc::default());
    assert_eq!(changes(&before, &same), PluginChanges::default());
    assert_eq!(same[0].info().problem, None);
    slow(dir.path(), "liba.so", "replaced.id", &["VERSION=\"2.0.0\""]);
    let after = discover(&options, &same, &Arc::default());
    assert_eq!(changes(&same, &after).replaced, ["replaced.id"]);
    let info = after[0].info();
    assert!(info.ready && info.version == "1.0.0");
    assert!(info.problem.unwrap().contains("or a restart lets it take over"));
}

#[test]
fn work_side_by_side_keeps_its_order_and_its_bound() {
    let inside = Mutex::new((0, 0));
    let done = side_by_side(3, (0..50).collect(), |n: u64| {
        {
            let mut inside = inside.lock();
            inside.0 += 1;
            inside.1 = inside.1.max(inside.0);
        }
        std::thread::sleep(Duration::from_millis(n % 5));
        inside.lock().0 -= 1;
        n * n
    });
    assert_eq!(done, (0..50).map(|n| n * n).collect::<Vec<_>>());
    assert!((2..=3).contains(&inside.lock().1), "{:?}", inside.lock());
    assert_eq!(side_by_side(4, Vec::<u8>::new(), |n| n), [0; 0]);
}

#[test]
fn auto_looks_at_who_made_a_plugin_and_at_what_it_asks_for() {
    let manifest = |id: &str, asks: &str| -> Manifest {
        toml::from_str(&format!("id = '{id}'\nversion = '1.0.0'\nabi = '1.0'\nisolation = '{asks}'")).unwrap()
    };
    let said = |isolation: &[(&str, Isolation)]| PluginOptions {
        isolation: isolation.iter().map(|(id, said)| ((*id).to_owned(), *said)).collect(),
        ..PluginOptions::default()
    };
    let of =
        |options: &PluginOptions, level, asks| options.isolation_of(&manifest("com.example.x", asks), level);
    let auto = said(&[("*", Isolation::Auto)]);
    for (level, asks, runs) in [
        (Level::Core, "any", Isolation::InProcess),
        (Level::Core, "in_process", Isolation::InProcess),
        (Level::Core, "worker", Isolation::Worker),
        (Level::Verified, "any", Isolation::Worker),
        // What it asks for is no reason to trust it.
        (Level::Verified, "in_process", Isolation::Worker),
        (Level::Org, "in_process", Isolation::Worker),
        (Level::Dev, "in_process", Isolation::Worker),
    ] {
        assert_eq!(of(&auto, level, asks), runs, "{level} {asks}");
    }
    // It cannot contain its own failures, whoever made it.
    for (key, value, runs) in [
        ("panic", "abort", Isolation::Worker),
        ("panic", "unwind", Isolation::InProcess),
        ("runtime", "go", Isolation::Worker),
        ("runtime", "jvm", Isolation::Worker),
        ("runtime", "native", Isolation::InProcess),
    ] {
        let text = format!("id = 'com.example.x'\nversion = '1.0.0'\nabi = '1.0'\n{key} = '{value}'");
        let manifest = Manifest::parse(&text).unwrap();
        assert_eq!(auto.isolation_of(&manifest, Level::Core), runs, "{key} {value}");
        let trusted = said(&[("com.example.x", Isolation::InProcess)]);
        assert_eq!(trusted.isolation_of(&manifest, Level::Core), Isolation::InProcess, "the operator's word");
    }
    let trusted = said(&[("*", Isolation::Auto), ("com.example.x", Isolation::InProcess)]);
    assert_eq!(of(&trusted, Level::Dev, "any"), Isolation::InProcess, "what is said of one goes first");
    let nothing = said(&[]);
    assert_eq!(of(&nothing, Level::Dev, "in_process"), Isolation::Worker, "nothing is said");
    assert_eq!(of(&nothing, Level::Core, "any"), Isolation::InProcess, "nothing is said");
}

/// Path by path and port by port, and the operator's word is stronger.
#[test]
fn a_worker_has_what_a_package_asks_for_and_a_library_in_a_folder_has_not() {
    let state = tempfile::tempdir().unwrap();
    let models = state.path().join("models/blobs/sha256");
    std::fs::create_dir_all(&models).unwrap();
    let mut workers = Workers::beside_the_program(state.path(), Vec::new());
    slow(state.path(), "liba.so", "asks.id", &[]);
    let path = state.path().join("liba.so");
    let with = |packaged: bool, asks: &str| {
        let mut file = inspect(&path).unwrap();
        file.packaged = packaged;
        file.manifest.resources = toml::from_str(asks).unwrap();
        file
    };
    let asks = "hosts = ['a.example:443', 'b.example:8080']\nread = ['/srv/a']\nwrite = ['/srv/b']";
    let granted = workers.granted_to(&with(true, asks));
    assert_eq!(granted.read, [models.clone(), "/srv/a".into()]);
    assert_eq!((granted.write, granted.ports), (vec!["/srv/b".into()], vec![443, 8080]));
    assert!(!granted.network && workers.withheld_from(&with(true, asks)).is_none());

    // What it needs it has and no more, whether or not anybody was shown it: that opens nothing.
    for sealed in [true, false] {
        let granted = workers.granted_to(&with(sealed, "memory = 1048576\nthreads = 3"));
        assert_eq!((granted.memory, granted.threads), ((1 << 20) + WORKER_MEMORY, 3));
    }
    let granted = workers.granted_to(&with(true, ""));
    assert_eq!((granted.memory, granted.threads), (0, 1024), "it does not say what it needs");
    let config = WorkerConfig { memory: Some(7 << 20), threads: Some(9), ..WorkerConfig::default() };
    workers.granted.insert("asks.id".to_owned(), config);
    let granted = workers.granted_to(&with(true, "memory = 1048576\nthreads = 3"));
    assert_eq!((granted.memory, granted.threads), (7 << 20, 9), "the operator's word");
    workers.granted.clear();

    // Nobody was shown what it asks for.
    let granted = workers.granted_to(&with(false, asks));
    assert_eq!((granted.read, granted.write, granted.ports), (vec![models], vec![], vec![]));
    for (asks, lacks, key) in [
        ("hosts = ['a.example:443']", "connections to a.example:443", "ports = [443]"),
        ("read = ['/srv/a']", "reading `/srv/a`", "read = [\"/srv/a\"]"),
        ("write = ['/srv/b']", "writing `/srv/b`", "write = [\"/srv/b\"]"),
        ("network = true", "the network", "network = true"),
    ] {
        let withheld = workers.withheld_from(&with(false, asks)).unwrap();
        assert!(withheld.contains(lacks) && withheld.contains(&format!("\"asks.id\".{key}")), "{withheld}");
    }
    let several = "network = true\nread = ['/srv/a', '/srv/c']\nwrite = ['/srv/b']";
    let withheld = workers.withheld_from(&with(false, several)).unwrap();
    for part in [
        "the network, and for reading `/srv/a`, `/srv/c`, and for writing `/srv/b`, which",
        "read = [\"/srv/a\", \"/srv/c\"]",
        "write = [\"/srv/b\"]",
        "a restart",
    ] {
        assert!(withheld.contains(part), "{part}: {withheld}");
    }

    // The keys of the server are no plugin's, whatever was agreed to.
    for path in [state.path(), state.path().parent().unwrap(), &state.path().join("journal")] {
        let asks = format!("read = ['{}']", path.display());
        assert!(!workers.granted_to(&with(true, &asks)).read.contains(&path.to_owned()));
        assert!(workers.withheld_from(&with(true, &asks)).unwrap().contains("reading"));
    }

    let config = WorkerConfig {
        network: Some(false),
        read: vec!["/srv".into()],
        ports: vec![8080],
        ..WorkerConfig::default()
    };
    workers.granted.insert("asks.id".to_owned(), config);
    assert_eq!(workers.granted_to(&with(true, asks)).ports, [8080]);
    let withheld = workers.withheld_from(&with(true, asks)).unwrap();
    assert!(withheld.contains("a.example:443"), "{withheld}");
    // A folder is granted with what is in it.
    assert_eq!(workers.withheld_from(&with(false, "read = ['/srv/a']")), None);
}

#[test]
fn a_plugin_that_was_removed_is_served_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    slow(dir.path(), "liba.so", "goes.away", &[]);
    let options = options(dir.path(), Duration::from_secs(10));
    let before = discover(&options, &[], &Arc::default());
    let text = std::fs::read(dir.path().join("liba.so")).unwrap();
    std::fs::remove_file(dir.path().join("liba.so")).unwrap();
    let [gone] = &discover(&options, &before, &Arc::default())[..] else { panic!("one plugin") };
    let info = gone.info();
    assert!(
        info.ready && info.problem.as_ref().unwrap().contains("it was removed, and is served until"),
        "{info:?}"
    );
    // As it was, once it is back; that it is another file is told instead.
    std::fs::write(dir.path().join("liba.so"), text).unwrap();
    let back = discover(&options, std::slice::from_ref(gone), &Arc::default());
    assert!(!back[0].info().problem.unwrap_or_default().contains("removed"));
}
