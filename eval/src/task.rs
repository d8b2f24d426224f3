use std::sync::LazyLock;

use serde::Deserialize;

/// A task of the list: its key, the name in tables, and the metric that counts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub key: String,
    pub name: String,
    pub size: u64,
    pub classes: u64,
    pub metric: String,
    /// The score of chance.
    pub random: Option<f64>,
    #[serde(default)]
    pub tags: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    task: Vec<Task>,
}

/// DataComp's tasks, in its order.
pub fn tasks() -> &'static [Task] {
    static TASKS: LazyLock<Vec<Task>> = LazyLock::new(|| {
        let file: File = toml::from_str(include_str!("../tasks.toml")).expect("the task list is sound");
        file.task
    });
    &TASKS
}

/// The task whose data lie in a folder of this name: `wds_KEY_test`, where `/` of the key is written `-`.
pub(crate) fn of_folder(folder: &str) -> Option<&'static Task> {
    let key = key_of_folder(folder)?;
    tasks().iter().find(|task| task.key.replace('/', "-") == key)
}

/// `KEY` of `wds_KEY_test`.
pub(crate) fn key_of_folder(folder: &str) -> Option<&str> {
    folder.strip_prefix("wds_")?.strip_suffix("_test").filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        assert_eq!(tasks().len(), 40);
        assert_eq!(of_folder("wds_vtab-caltech101_test").unwrap().metric, "mean_per_class_recall");
        assert!(of_folder("wds_shapes_test").is_none());
    }
}
