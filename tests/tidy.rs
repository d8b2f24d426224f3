//! Rules of the house that a machine can check.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_path_buf()
}

fn git_files() -> Vec<String> {
    let output = Command::new("git").args(["ls-files"]).current_dir(root()).output().expect("git runs");
    String::from_utf8(output.stdout).expect("paths are text").lines().map(str::to_string).collect()
}

/// Which of our crates each may use. `tests` may use all.
const DIRECTION: [(&str, &[&str]); 7] = [
    ("storage", &[]),
    ("index", &["storage", "gpu"]),
    ("engine", &["storage", "index"]),
    ("gpu", &[]),
    ("train", &["storage", "gpu"]),
    ("eval", &["storage", "train"]),
    ("shell", &["storage", "index", "engine", "gpu", "train", "eval"]),
];

#[test]
fn crates_depend_in_one_direction() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert_eq!(packages.len(), DIRECTION.len() + 1, "a crate is missing from the rule");
    for (name, allowed) in DIRECTION {
        let package = packages.iter().find(|p| p["name"] == format!("tarn-{name}")).expect("each crate is there");
        // Tests of a crate may use more: what is built into the program may not.
        let dependencies = package["dependencies"].as_array().expect("a list").iter().filter(|d| d["kind"].is_null());
        for dependency in dependencies.filter_map(|d| d["name"].as_str()?.strip_prefix("tarn-")) {
            assert!(allowed.contains(&dependency), "{name} must not use {dependency}");
        }
    }
}

#[test]
fn files_are_short() {
    for file in git_files().iter().filter(|file| file.ends_with(".rs")) {
        let lines = std::fs::read_to_string(root().join(file)).map_or(0, |text| text.lines().count());
        assert!(lines <= 1000, "{file} has {lines} lines, 1,000 at most");
    }
}

#[test]
fn the_top_level_holds_nothing_else() {
    const ALLOWED: [&str; 12] =
        ["Cargo.toml", "Cargo.lock", "README.md", "LICENSE", "engine", "storage", "index", "gpu", "train", "eval", "shell", "tests"];
    for file in git_files() {
        let top = file.split('/').next().unwrap_or_default();
        assert!(top.starts_with('.') || ALLOWED.contains(&top), "{top} does not belong at the top");
    }
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest");
    let section = manifest.split("[workspace.dependencies]").nth(1).and_then(|s| s.split("\n[").next()).expect("the section");
    // A comment stands above each group, or behind the line.
    let mut explained = false;
    for line in section.lines() {
        if line.is_empty() {
            explained = false;
        } else if line.starts_with('#') {
            explained = true;
        } else {
            assert!(explained || line.contains('#'), "no reason given for: {line}");
        }
    }
}

#[test]
fn shipped_filters_say_what_they_do() {
    for file in git_files().iter().filter(|file| file.starts_with("engine/filters/")) {
        let text = std::fs::read_to_string(root().join(file)).expect("a readable file");
        assert!(text.starts_with("-- about: ") && text.contains("\n-- source: "), "{file} lacks its header");
    }
}
