//! WordNet 3.0's index of senses and its morphology, as NLTK reads them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

/// Parts of speech in the order in which NLTK asks for them: the files' endings and the rules that take a form to its
/// base.
const PARTS: [(&str, &[(&str, &str)]); 4] = [
    (
        "noun",
        &[("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")],
    ),
    ("verb", &[("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")]),
    ("adj", &[("er", ""), ("est", ""), ("er", "e"), ("est", "e")]),
    ("adv", &[]),
];

/// The files that are read, below the WordNet folder.
pub(crate) const FILES: [&str; 8] = ["index.noun", "index.verb", "index.adj", "index.adv", "noun.exc", "verb.exc", "adj.exc", "adv.exc"];

/// Where each lemma's senses begin.
pub(crate) struct WordNet {
    /// By part of speech: a lemma's first synset, as its offset in the data file.
    first: [HashMap<Box<str>, u32>; 4],
    /// Irregular forms and their bases.
    exceptions: [HashMap<Box<str>, Vec<Box<str>>>; 4],
}

impl WordNet {
    /// Reads the folder with `index.noun`, `noun.exc` and so on.
    pub fn open(folder: &Path) -> io::Result<WordNet> {
        let mut wordnet = WordNet { first: Default::default(), exceptions: Default::default() };
        for (part, (name, _)) in PARTS.iter().enumerate() {
            for line in read(&folder.join(format!("index.{name}")))?.lines().filter(|line| !line.starts_with(' ')) {
                if let Some((lemma, offset)) = first_sense(line) {
                    wordnet.first[part].insert(lemma.into(), offset);
                }
            }
            for line in read(&folder.join(format!("{name}.exc")))?.lines() {
                let mut words = line.split_whitespace();
                if let Some(form) = words.next() {
                    wordnet.exceptions[part].insert(form.into(), words.map(Into::into).collect());
                }
            }
        }
        if wordnet.first.iter().all(HashMap::is_empty) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its index files hold no lemma"));
        }
        Ok(wordnet)
    }

    /// The offset of the first synset of a word, as NLTK's `wordnet.synsets(word)[0].offset()`.
    pub fn first_synset(&self, word: &str) -> Option<u32> {
        let form = word.to_lowercase();
        (0..PARTS.len()).find_map(|part| self.base(&form, part))
    }

    /// The first sense of the form, or of the first base that the morphology leads to.
    fn base(&self, form: &str, part: usize) -> Option<u32> {
        let known = |form: &str| self.first[part].get(form).copied();
        if let Some(offset) = known(form) {
            return Some(offset);
        }
        if let Some(bases) = self.exceptions[part].get(form) {
            return bases.iter().find_map(|base| known(base));
        }
        PARTS[part].1.iter().find_map(|(old, new)| known(&(form.strip_suffix(old)?.to_string() + new)))
    }
}

fn read(path: &Path) -> io::Result<String> {
    let bytes = std::fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `lemma pos synsets pointers [symbol...] senses tagged offset...`
fn first_sense(line: &str) -> Option<(&str, u32)> {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let lemma = words.next()?;
    let pointers: usize = words.nth(2)?.parse().ok()?;
    let offset = words.nth(pointers + 2)?;
    Some((lemma, offset.parse().ok()?))
}

/// A list of synsets, one a line: `n01440764`, or the offset alone.
pub(crate) fn read_list(path: &Path) -> io::Result<HashSet<u32>> {
    let text = read(path)?;
    let offset = |(i, line): (usize, &str)| {
        let digits = line.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let wrong = || {
            io::Error::new(io::ErrorKind::InvalidData, format!("line {}: not a synset: '{line}', expected for instance n01440764", i + 1))
        };
        digits.parse().map_err(|_| wrong())
    };
    text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()).map(offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_senses_exceptions_and_rules() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        FILES.iter().for_each(|name| write(name, ""));
        write("index.noun", "  1 a licence line\nman n 2 2 @ ~ 2 1 10287213 09605289  \nbox n 1 1 @ 1 0 02883344  \n");
        write("index.verb", "box v 1 1 @ 1 0 01418667  \nrun v 1 0 1 1 01926311  \n");
        write("noun.exc", "men man\n");
        write("verb.exc", "ran run\n");
        let wordnet = WordNet::open(folder.path()).expect("readable");
        for (word, offset) in [
            ("Man", Some(10287213)),
            ("men", Some(10287213)),
            ("boxes", Some(2883344)),
            ("boxed", Some(1418667)),
            ("ran", Some(1926311)),
            ("running", None),
            ("runs", Some(1926311)),
            ("", None),
        ] {
            assert_eq!(wordnet.first_synset(word), offset, "{word}");
        }
        write("list.txt", "n02883344\n\n01418667\n");
        assert_eq!(read_list(&folder.path().join("list.txt")).expect("readable"), HashSet::from([2883344, 1418667]));
    }
}
