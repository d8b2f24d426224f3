use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::metric::Grouping;
use crate::{Error, Result};

/// What an evaluation is of: DataComp's list is `tasks.toml`, others say it in a `task.toml` in their folder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub key: String,
    /// The name in tables.
    pub name: String,
    #[serde(default)]
    pub kind: Kind,
    /// The metric that counts; FairFace and UTKFace have none.
    pub metric: Option<String>,
    /// Samples, where all are there: images, or instances of an association.
    pub size: Option<u64>,
    pub classes: Option<u64>,
    /// The score of chance.
    pub random: Option<f64>,
    #[serde(default)]
    pub tags: Vec<String>,
    /// Metrics of a classification beside the usual ones: `acc_avg`, `recall-macro_all`, `F1-macro_all`.
    #[serde(default)]
    pub scores: Vec<String>,
    /// The columns of a sample's `.npy`.
    #[serde(default)]
    pub fields: Vec<String>,
    /// Accuracies by the values of fields.
    #[serde(default)]
    pub groups: Vec<Grouping>,
    /// Names that its folder goes by, besides `wds_KEY_test`.
    #[serde(default)]
    pub folders: Vec<String>,
}

/// What is asked of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The class of an image.
    #[default]
    Classification,
    /// Race, gender, age and harmful labels of faces, as FairFace and UTKFace are evaluated.
    Faces,
    /// The captions of an image and the image of a caption.
    Retrieval,
    /// The images that people associate with a cue, as in WinoGAViL.
    Association,
}

#[derive(Deserialize)]
struct File {
    task: Vec<Task>,
}

/// `task.toml`: the fields of a task, those that can be guessed left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnTask {
    key: Option<String>,
    name: Option<String>,
    kind: Option<Kind>,
    metric: Option<String>,
    size: Option<u64>,
    classes: Option<u64>,
    random: Option<f64>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    scores: Vec<String>,
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    groups: Vec<Grouping>,
}

/// DataComp's tasks, in its order.
pub fn tasks() -> &'static [Task] {
    static TASKS: LazyLock<Vec<Task>> = LazyLock::new(|| {
        let file: File = toml::from_str(include_str!("../tasks.toml")).expect("the task list is sound");
        file.task
    });
    &TASKS
}

/// Those that count towards the average over 38.
pub fn scored() -> impl Iterator<Item = &'static Task> {
    tasks().iter().filter(|task| task.metric.is_some())
}

/// DataComp's task of this key.
pub fn of_key(key: &str) -> Option<&'static Task> {
    tasks().iter().find(|task| task.key == key)
}

/// DataComp's task whose data lie in a folder of this name: `wds_KEY_test`, where `/` of the key is written `-` and
/// `fairness/` is left out, or one that the list names.
pub(crate) fn of_folder(folder: &str) -> Option<&'static Task> {
    // The caches of Hugging Face's libraries: OWNER___NAME and datasets--OWNER--NAME.
    let bare = folder.rsplit("___").next().unwrap_or(folder);
    let bare = folder.strip_prefix("datasets--").and_then(|rest| rest.split_once("--")).map_or(bare, |(_, name)| name);
    let key = key_of_folder(folder);
    let written = |task: &Task| task.key.strip_prefix("fairness/").unwrap_or(&task.key).replace('/', "-");
    tasks().iter().find(|task| key.is_some_and(|key| key == written(task)) || task.folders.iter().any(|name| name == bare))
}

/// `KEY` of `wds_KEY_test` or `wds_KEY`.
fn key_of_folder(folder: &str) -> Option<&str> {
    let key = folder.strip_prefix("wds_")?;
    Some(key.strip_suffix("_test").unwrap_or(key)).filter(|key| !key.is_empty())
}

impl Task {
    /// A task that is not of the list, from its folder's name, its layout and its `task.toml`, if there is one.
    pub(crate) fn own(folder: &Path, guessed: Kind) -> Result<Task> {
        let path = folder.join("task.toml");
        let text = if path.exists() { std::fs::read_to_string(&path).map_err(Error::io(&path))? } else { String::new() };
        let own: OwnTask = toml::from_str(&text).map_err(|e| Error::TaskFile { path: path.clone(), reason: e.to_string() })?;
        let folder = folder.file_name().unwrap_or_default().to_string_lossy();
        let key = own.key.unwrap_or_else(|| key_of_folder(&folder).unwrap_or(&folder).to_string());
        if of_key(&key).is_some() {
            return Err(Error::TaskFile { path, reason: format!("the key {key} is one of DataComp's tasks") });
        }
        let kind = own.kind.unwrap_or(guessed);
        let usual = match kind {
            Kind::Classification => Some("acc1"),
            Kind::Faces => None,
            Kind::Retrieval => Some("mean_recall@1"),
            Kind::Association => Some("avg_jaccard_score"),
        };
        let task = Task {
            name: own.name.unwrap_or_else(|| key.clone()),
            key,
            kind,
            metric: own.metric.or(usual.map(str::to_string)),
            size: own.size,
            classes: own.classes,
            random: own.random,
            tags: own.tags,
            scores: own.scores,
            fields: if kind == Kind::Faces && own.fields.is_empty() {
                crate::faces::FIELDS.map(str::to_string).to_vec()
            } else {
                own.fields
            },
            groups: own.groups,
            folders: Vec::new(),
        };
        task.check().map_err(|reason| Error::TaskFile { path, reason })?;
        Ok(task)
    }

    /// That what it asks for can be had.
    fn check(&self) -> Result<(), String> {
        for by in self.groups.iter().flat_map(|group| &group.by) {
            if !self.fields.contains(by) {
                return Err(format!("groups are by '{by}', which is not among the fields {:?}", self.fields));
            }
        }
        if let Some(group) = self.groups.iter().find(|group| group.by.is_empty() || !(1..=5).contains(&group.top)) {
            return Err(format!("the groups '{}' need a field to be by, and top between 1 and 5", group.name));
        }
        let given: Vec<String> = match self.kind {
            Kind::Classification => {
                let groups = self.groups.iter().flat_map(|group| [group.worst(), format!("{}_avg", group.name)]);
                ["acc1", "acc5", "mean_per_class_recall"].map(str::to_string).into_iter().chain(self.scores.clone()).chain(groups).collect()
            }
            Kind::Retrieval => crate::retrieval::metrics(),
            Kind::Association => crate::association::METRICS.map(str::to_string).to_vec(),
            Kind::Faces if self.fields != crate::faces::FIELDS => {
                return Err(format!("faces have the fields {:?}, got {:?}", crate::faces::FIELDS, self.fields));
            }
            Kind::Faces => crate::faces::metric_names(),
        };
        if let Some(score) = self.scores.iter().find(|score| !crate::metric::WILDS_SCORES.contains(&score.as_str())) {
            return Err(format!("scores has '{score}', expected some of {:?}", crate::metric::WILDS_SCORES));
        }
        match &self.metric {
            Some(metric) if !given.contains(metric) => Err(format!("metric = '{metric}', expected one of {}", given.join(", "))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        assert_eq!(tasks().len(), 40);
        assert_eq!(scored().count(), 38);
        tasks().iter().for_each(|task| task.check().unwrap());
        assert!(scored().all(|task| task.random.is_some() && task.size.is_some()));
        let metric = |folder: &str| of_folder(folder).and_then(|task| task.metric.as_deref());
        assert_eq!(metric("wds_vtab-caltech101_test"), Some("mean_per_class_recall"));
        assert_eq!(metric("wds_dollar_street_test"), Some("acc_top5_wg"));
        assert_eq!(metric("wds_wilds-fmow_test"), Some("acc_worst_region"));
        assert_eq!(metric("nlphuji___winogavil"), Some("jaccard_score_10-12"));
        assert_eq!(metric("datasets--nlphuji--flickr_1k_test_image_text_retrieval"), Some("mean_recall@1"));
        assert!(of_folder("wds_shapes_test").is_none());
    }
}
