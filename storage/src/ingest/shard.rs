//! One webdataset shard, read from front to back.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::ledger::FileDigest;
use crate::rejects::Reject;
use crate::{Error, Result, Uid, images};

/// Members above this are not read: no image that a model sees is so large.
const MAX_MEMBER: u64 = 256 << 20;

/// A whole sample: its image, and what its text and JSON say.
pub(super) struct Sample {
    pub key: String,
    pub uid: Uid,
    pub image: Vec<u8>,
    pub info: Info,
}

/// What img2dataset's JSON says of a sample; each value of another type is passed over.
#[derive(Debug, Default, Clone)]
pub(super) struct Info {
    pub has_json: bool,
    pub uid: Option<String>,
    pub url: Option<String>,
    pub caption: Option<String>,
    pub original_width: Option<i32>,
    pub original_height: Option<i32>,
    pub sha256: Option<String>,
    /// img2dataset's, or [`crate::images::BLURRED`] where the JSON says that the faces are blurred.
    pub status: Option<String>,
    pub face_bboxes: Option<Vec<[f32; 4]>>,
}

/// What was read to the end, or to where the file breaks off: its digest.
pub(super) fn read(path: &Path, mut each: impl FnMut(Result<Sample, Reject>) -> bool) -> Result<FileDigest> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(Error::io(path))?;
    let mut digested = Digested { inner: file, digest: Sha256::new() };
    let unpacked: Box<dyn Read + '_> = match path.extension().and_then(|e| e.to_str()) {
        Some("gz" | "tgz") => Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 20, &mut digested))),
        Some("zst") => Box::new(zstd::stream::Decoder::new(&mut digested).map_err(Error::io(path))?),
        _ => Box::new(BufReader::with_capacity(1 << 20, &mut digested)),
    };
    let mut archive = tar::Archive::new(unpacked);
    let result = each_group(&mut archive, |group| match group {
        Ok((key, parts)) => each(sample(key, parts, &name)),
        Err((member, reason, detail)) => each(Err(Reject { member: Some(member), ..Reject::file(&name, reason, detail) })),
    });
    drop(archive);
    if let Err(e) = result {
        each(Err(Reject::file(&name, "shard breaks off", e)));
    }
    // What lies after the archive's end is of the file as well.
    std::io::copy(&mut digested, &mut std::io::sink()).map_err(Error::io(path))?;
    Ok(digested.digest.finalize().into())
}

struct Digested {
    inner: File,
    digest: Sha256,
}

impl Read for Digested {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        self.digest.update(&out[..n]);
        Ok(n)
    }
}

/// A sample's members by lower-case extension: `jpg`, `txt`, `json`.
type Parts = Vec<(String, Vec<u8>)>;
type BadMember = (String, &'static str, String);

/// Calls `each` with every run of members that share a key, as webdataset groups them: the key is the path up to the
/// first dot of the file name. Stops when it returns false.
fn each_group<R: Read>(
    archive: &mut tar::Archive<R>,
    mut each: impl FnMut(Result<(String, Parts), BadMember>) -> bool,
) -> std::io::Result<()> {
    let (mut key, mut parts) = (String::new(), Parts::new());
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path()?.into_owned();
        let name = path.to_string_lossy().into_owned();
        let inside = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let bad = match entry.size() {
            _ if !inside => Some(("path climbs out of the shard", String::new())),
            size if size > MAX_MEMBER => Some(("member is too large", format!("{size} bytes, at most {MAX_MEMBER}"))),
            _ => None,
        };
        if let Some((reason, detail)) = bad {
            if !each(Err((name, reason, detail))) {
                return Ok(());
            }
            continue;
        }
        let name_at = name.rfind('/').map_or(0, |i| i + 1);
        // What systems leave in archives: .DS_Store, ._x.jpg.
        if name[name_at..].starts_with('.') || name.starts_with("__MACOSX/") {
            continue;
        }
        let Some(dot) = name[name_at..].find('.') else { continue };
        let (this_key, extension) = (&name[..name_at + dot], name[name_at + dot + 1..].to_lowercase());
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        let whole = entry.read_to_end(&mut bytes).and_then(|n| match n as u64 == entry.size() {
            true => Ok(()),
            false => Err(std::io::ErrorKind::UnexpectedEof.into()),
        });
        if this_key != key || whole.is_err() {
            let previous = std::mem::replace(&mut key, this_key.to_string());
            let previous_parts = std::mem::take(&mut parts);
            // Of a sample that the shard breaks off in, nothing is taken.
            let broken = whole.is_err() && previous == this_key;
            if !previous_parts.is_empty() && !broken && !each(Ok((previous, previous_parts))) {
                return Ok(());
            }
        }
        whole?;
        parts.push((extension, bytes));
    }
    if !parts.is_empty() {
        each(Ok((key, parts)));
    }
    Ok(())
}

/// The sample of these members, or why it is none.
fn sample(key: String, mut parts: Parts, path: &str) -> Result<Sample, Reject> {
    let reject = |reason, detail: String| Err(Reject { member: Some(key.clone()), ..Reject::file(path, reason, detail) });
    let mut take = |extension: &str| parts.iter().position(|(e, _)| e == extension).map(|at| parts.swap_remove(at).1);
    let (json, text) = (take("json"), take("txt"));
    let image = ["jpg", "jpeg", "png", "webp", "gif"].iter().find_map(|extension| take(extension));
    let info = match json.as_deref().map(parse) {
        Some(Err(e)) => return reject("broken json", e.to_string()),
        Some(Ok(info)) => info,
        None => Info::default(),
    };
    let Some(image) = image else { return reject("no image", String::new()) };
    // Text that is no UTF-8 gives way to the JSON's.
    let caption = match text.map(String::from_utf8) {
        Some(Ok(text)) => Some(text),
        Some(Err(e)) => info.caption.clone().or_else(|| Some(String::from_utf8_lossy(e.as_bytes()).into_owned())),
        None => info.caption.clone(),
    };
    let uid = match (&info.uid, &info.url, &caption) {
        (Some(text), ..) => match text.parse() {
            Ok(uid) => uid,
            Err(_) => return reject("not a uid", text.clone()),
        },
        (None, None, None) => return reject("no uid, url or text", String::new()),
        (None, url, caption) => Uid::of_pair(url.as_deref().unwrap_or(""), caption.as_deref().unwrap_or("")),
    };
    if image.is_empty() {
        return reject("image of zero bytes", String::new());
    }
    if images::inspect(&image).is_none() {
        return reject("not an image", format!("{} bytes", image.len()));
    }
    Ok(Sample { key, uid, image, info: Info { caption, ..info } })
}

fn parse(json: &[u8]) -> serde_json::Result<Info> {
    let value: Value = match serde_json::from_slice(json) {
        Ok(value) => value,
        // Python writes NaN and Infinity, which are no JSON.
        Err(e) => serde_json::from_str(&without_nan(&String::from_utf8_lossy(json))).map_err(|_| e)?,
    };
    let text = |name: &str| value[name].as_str().map(str::to_string);
    let int = |name: &str| value[name].as_f64().filter(|x| (0.0..=f64::from(i32::MAX)).contains(x)).map(|x| x as i32);
    let bbox = |bbox: &Value| -> Option<[f32; 4]> {
        let bbox: Vec<f32> = bbox.as_array()?.iter().filter_map(|x| Some(x.as_f64()? as f32)).collect();
        bbox.try_into().ok()
    };
    Ok(Info {
        has_json: true,
        uid: text("uid"),
        url: text("url"),
        caption: text("caption"),
        original_width: int("original_width"),
        original_height: int("original_height"),
        sha256: text("sha256"),
        status: if value["blurred"] == true { Some(images::BLURRED.to_string()) } else { text("status") },
        face_bboxes: value["face_bboxes"].as_array().map(|all| all.iter().filter_map(bbox).collect()),
    })
}

/// `NaN`, `Infinity` and `-Infinity` outside of strings as `null`.
fn without_nan(json: &str) -> String {
    let (mut out, mut in_string, mut rest) = (String::with_capacity(json.len()), false, json);
    while let Some(c) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].iter().find(|word| !in_string && rest.starts_with(**word));
        if let Some(word) = word {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        let mut length = c.len_utf8();
        if in_string && c == '\\' {
            length += rest[length..].chars().next().map_or(0, char::len_utf8);
        } else if c == '"' {
            in_string = !in_string;
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_json_is_read() {
        let info = parse(
            br#"{"caption": "a \"NaN\" cat", "original_width": 640.0, "original_height": NaN, "exif": -Infinity,
            "face_bboxes": [[0.1, 0.2, 0.3, 0.4], [1]]}"#,
        );
        let info = info.unwrap();
        assert_eq!(info.caption.as_deref(), Some("a \"NaN\" cat"));
        assert_eq!((info.original_width, info.original_height), (Some(640), None));
        assert_eq!(info.face_bboxes.unwrap(), [[0.1, 0.2, 0.3, 0.4]]);
        assert!(parse(b"{\"uid\": ").is_err());
    }
}
