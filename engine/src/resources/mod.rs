//! Optional files that some functions need: where they are looked for, what is missing, and their digests.

pub(crate) mod cld3;
pub(crate) mod fasttext;
pub(crate) mod wordnet;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use sha2::{Digest, Sha256};

use crate::{Error, Result};
use fasttext::FastText;
use wordnet::WordNet;

/// One of the optional files, for a person.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    pub name: String,
    /// The functions that need it.
    pub serves: &'static str,
    /// Where it is; `None` where it is missing.
    pub path: Option<PathBuf>,
    /// How to get it.
    pub how: &'static str,
}

/// The optional files, found by name in the first folder that has them, each read when it is first needed.
#[derive(Default)]
pub struct Resources {
    folders: Vec<PathBuf>,
    language: OnceLock<Arc<FastText>>,
    wordnet: OnceLock<Arc<WordNet>>,
    lists: Mutex<HashMap<String, Arc<HashSet<u32>>>>,
}

const LANGUAGE_MODELS: [&str; 2] = ["lid.176.bin", "lid.176.ftz"];
const WORDNET: &str = "wordnet";
/// Where Debian's package puts WordNet.
const DEBIAN_WORDNET: &str = "/usr/share/wordnet";
const IMAGENET: &str = "imagenet21k_wordnet_ids";

const GET_LANGUAGE: &str =
    "https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.bin, or any other fastText language model under that name";
const GET_WORDNET: &str = "apt-get install wordnet-base, or the folder 'dict' of WordNet 3.0 under that name";
const GET_LIST: &str =
    "https://storage.googleapis.com/bit_models/imagenet21k_wordnet_ids.txt, or any list of synsets under a name of yours";

impl Resources {
    /// Looks in `given` if it is there, and else in `TARN_RESOURCES` and in `tarn/resources` of the user's data folder.
    pub fn new(given: Option<PathBuf>) -> Resources {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
        let folders = match given {
            Some(folder) => vec![folder],
            None => variable("TARN_RESOURCES").into_iter().chain(data.map(|data| data.join("tarn/resources"))).collect(),
        };
        Resources { folders, ..Resources::default() }
    }

    /// The folders that are looked through, in order.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// All that tarn can use, found or missing.
    pub fn list(&self) -> Vec<Resource> {
        let language = Resource {
            name: LANGUAGE_MODELS.join(" or "),
            serves: "lang_fasttext; filters basic_filter, text_based, image_based",
            path: self.language_path(),
            how: GET_LANGUAGE,
        };
        let wordnet = Resource {
            name: format!("{WORDNET}/"),
            serves: "mentions_synset; filter text_based",
            path: self.wordnet_path(),
            how: GET_WORDNET,
        };
        let list = Resource {
            name: format!("{IMAGENET}.txt"),
            serves: "mentions_synset; filter text_based",
            path: self.find(&format!("{IMAGENET}.txt")),
            how: GET_LIST,
        };
        vec![language, wordnet, list]
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.exists())
    }

    fn language_path(&self) -> Option<PathBuf> {
        LANGUAGE_MODELS.iter().find_map(|name| self.find(name))
    }

    fn wordnet_path(&self) -> Option<PathBuf> {
        let debian = Some(PathBuf::from(DEBIAN_WORDNET)).filter(|path| path.join(wordnet::FILES[0]).exists());
        self.find(WORDNET).or(debian)
    }

    fn missing(&self, name: String, how: &'static str) -> Error {
        let places = self.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        Error::ResourceMissing { name, places, how }
    }

    /// The language model.
    pub(crate) fn language(&self) -> Result<Arc<FastText>> {
        if let Some(model) = self.language.get() {
            return Ok(model.clone());
        }
        let path = self.language_path().ok_or_else(|| self.missing(LANGUAGE_MODELS.join("' or '"), GET_LANGUAGE))?;
        let open = || {
            let file = File::open(&path)?;
            let len = file.metadata()?.len();
            FastText::read(BufReader::with_capacity(1 << 20, file), len)
        };
        let model = open().map_err(|source| Error::Resource { path: path.clone(), source })?;
        Ok(self.language.get_or_init(|| Arc::new(model)).clone())
    }

    pub(crate) fn wordnet(&self) -> Result<Arc<WordNet>> {
        if let Some(wordnet) = self.wordnet.get() {
            return Ok(wordnet.clone());
        }
        let path = self.wordnet_path().ok_or_else(|| self.missing(format!("{WORDNET}/"), GET_WORDNET))?;
        let wordnet = WordNet::open(&path).map_err(|source| Error::Resource { path, source })?;
        Ok(self.wordnet.get_or_init(|| Arc::new(wordnet)).clone())
    }

    /// A list of synsets, `NAME.txt`.
    pub(crate) fn synsets(&self, name: &str) -> Result<Arc<HashSet<u32>>> {
        let mut lists = self.lists.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(list) = lists.get(name) {
            return Ok(list.clone());
        }
        let file = format!("{name}.txt");
        let plain = !name.is_empty() && !name.contains(['/', '\\']) && !name.contains("..");
        let path = Some(&file).filter(|_| plain).and_then(|file| self.find(file)).ok_or_else(|| self.missing(file, GET_LIST))?;
        let list = Arc::new(wordnet::read_list(&path).map_err(|source| Error::Resource { path, source })?);
        lists.insert(name.to_string(), list.clone());
        Ok(list)
    }

    /// Digests of the files behind a function of this name and, where it has one, its list, by file name.
    pub(crate) fn digests(&self, function: &str, list: Option<&str>) -> Result<BTreeMap<String, String>> {
        let mut paths = Vec::new();
        match function {
            "lang_fasttext" => {
                paths.push(self.language_path().ok_or_else(|| self.missing(LANGUAGE_MODELS.join("' or '"), GET_LANGUAGE))?);
            }
            "mentions_synset" => {
                let wordnet = self.wordnet_path().ok_or_else(|| self.missing(format!("{WORDNET}/"), GET_WORDNET))?;
                paths.extend(wordnet::FILES.map(|name| wordnet.join(name)));
                paths.extend(list.and_then(|name| self.find(&format!("{name}.txt"))));
            }
            _ => {}
        }
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        paths.into_iter().map(|path| Ok((name(&path), digest(&path)?))).collect()
    }
}

/// SHA-256 of a file, in hexadecimal digits.
pub fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let (mut sha256, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block).map_err(Error::io(path))? {
            0 => return Ok(sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => sha256.update(&block[..n]),
        }
    }
}
