//! One webdataset shard, read from front to back.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::json::{self, Object};
use crate::ledger::FileDigest;
use crate::rejects::Reject;
use crate::uid::hex_decode;
use crate::{Error, Result, Uid, images};

/// Members above this are not read: no image that a model sees is so large.
const MAX_MEMBER: u64 = 256 << 20;

/// A whole sample: its image, and what its text and JSON say.
pub(super) struct Sample {
    pub key: String,
    pub uid: Uid,
    pub image: Vec<u8>,
    pub info: Info,
    /// Values of it that are lost or replaced.
    pub lost: Vec<Reject>,
}

/// What img2dataset's JSON says of a sample.
#[derive(Debug, Default, Clone)]
pub(super) struct Info {
    pub has_json: bool,
    pub uid: Option<String>,
    pub url: Option<String>,
    pub caption: Option<String>,
    pub original_width: Option<i32>,
    pub original_height: Option<i32>,
    pub sha256: Option<[u8; 32]>,
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
    if let Err(reject) = each_archive(unpacked, &name, &mut each) {
        each(Err(reject));
    }
    // What lies after the archive's end is of the file as well.
    std::io::copy(&mut digested, &mut std::io::sink()).map_err(Error::io(path))?;
    Ok(digested.digest.finalize().into())
}

/// Reads an archive, and those that were put behind it.
fn each_archive(unpacked: Box<dyn Read + '_>, name: &str, each: &mut impl FnMut(Result<Sample, Reject>) -> bool) -> Result<(), Reject> {
    let (mut rest, mut reason) = (unpacked, "shard breaks off");
    loop {
        let mut goes_on = true;
        let mut archive = tar::Archive::new(&mut rest);
        let read = each_group(&mut archive, |group| {
            goes_on = match group {
                Ok((key, parts)) => each(sample(key, parts, name)),
                Err((member, reason, detail)) => each(Err(Reject { member: Some(member), ..Reject::file(name, reason, detail) })),
            };
            goes_on
        });
        read.and_then(|()| if goes_on { next_block(&mut rest) } else { Ok(None) })
            .map(|block| match block {
                Some(block) => rest = Box::new(std::io::Cursor::new(block).chain(std::mem::replace(&mut rest, Box::new(std::io::empty())))),
                None => goes_on = false,
            })
            .map_err(|e| Reject::file(name, reason, e))?;
        if !goes_on {
            return Ok(());
        }
        reason = "what follows the archive cannot be read";
    }
}

/// Returns the next block that is not all zeros; none at the end of the file.
fn next_block(rest: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    loop {
        let mut block = Vec::new();
        rest.take(512).read_to_end(&mut block)?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        if block.len() < 512 {
            return Ok(None);
        }
    }
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

/// A sample's members by lower-case extension: `jpg`, `txt`, `json`; of one that is too large only its size.
type Parts = Vec<(String, Result<Vec<u8>, u64>)>;
type BadMember = (String, &'static str, String);

/// Calls `each` with every run of members that share a key, as webdataset groups them: the key is the path up to the
/// first dot of the file name. An extension that comes again begins another sample of that key; as which part belongs
/// to which is then told by their order alone, samples of one key must all have the same extensions in the same order,
/// and one that has not is bad. Stops when `each` returns false.
fn each_group<R: Read>(
    archive: &mut tar::Archive<R>,
    mut each: impl FnMut(Result<(String, Parts), BadMember>) -> bool,
) -> std::io::Result<()> {
    let (mut key, mut parts) = (Vec::new(), Parts::new());
    // The extensions of this key's first sample, once a second has begun.
    let mut order: Option<Vec<String>> = None;
    let mut finish = |key: &[u8], parts: Parts, order: &Option<Vec<String>>| {
        let name = String::from_utf8_lossy(key).into_owned();
        let same = order.as_ref().is_none_or(|order| order.iter().eq(parts.iter().map(|(extension, _)| extension)));
        parts.is_empty() || each(if same { Ok((name, parts)) } else { Err((name, TWICE, order_detail(order, &parts))) })
    };
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path_bytes().into_owned();
        let name_at = path.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
        // What systems leave in archives: .DS_Store, ._x.jpg.
        if path[name_at..].starts_with(b".") || path.starts_with(b"__MACOSX/") {
            continue;
        }
        let Some(dot) = path[name_at..].iter().position(|b| *b == b'.') else { continue };
        let (this_key, extension) = path.split_at(name_at + dot);
        let extension = String::from_utf8_lossy(&extension[1..]).to_lowercase();
        let mut bytes = Vec::new();
        let whole = match entry.size() {
            size if size > MAX_MEMBER => Ok(Err(size)),
            size => match entry.read_to_end(&mut bytes) {
                Ok(n) if n as u64 == size => Ok(Ok(bytes)),
                Ok(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                Err(e) => Err(e),
            },
        };
        let again = this_key == key && parts.iter().any(|(e, _)| *e == extension);
        if this_key != key || again || whole.is_err() {
            let previous = std::mem::take(&mut parts);
            // Of a sample that the shard breaks off in, nothing is taken.
            let broken = whole.is_err() && !again && this_key == key;
            let of_first = again.then(|| previous.iter().map(|(e, _)| e.clone()).collect());
            if !broken && !finish(&key, previous, &order) {
                return Ok(());
            }
            order = if again { order.or(of_first) } else { None };
            key = this_key.to_vec();
        }
        parts.push((extension, whole?));
    }
    finish(&key, parts, &order);
    Ok(())
}

const TWICE: &str = "member name comes twice, in another order";

fn order_detail(order: &Option<Vec<String>>, parts: &Parts) -> String {
    let names = parts.iter().map(|(extension, _)| extension.as_str()).collect::<Vec<_>>().join(", ");
    format!("expected {} again, got {names}", order.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// Extensions of images, the first of which a sample has is taken.
const IMAGES: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];

/// Returns the sample of these members, or why it is none.
fn sample(key: String, mut parts: Parts, path: &str) -> Result<Sample, Reject> {
    let about = |reason, detail: String| Reject { member: Some(key.clone()), ..Reject::file(path, reason, detail) };
    let mut lost = Vec::new();
    let mut lose = |column: Option<&str>, reason, detail: String| {
        lost.push(Reject { column: column.map(str::to_string), kept: true, ..about(reason, detail) });
    };
    for (extension, size) in parts.iter().filter_map(|(extension, part)| Some((extension, part.as_ref().err()?))) {
        let (reason, detail) = ("member is too large", format!(".{extension} of {size} bytes, at most {MAX_MEMBER}"));
        if IMAGES.contains(&extension.as_str()) || ["json", "txt"].contains(&extension.as_str()) {
            return Err(about(reason, detail));
        }
        lose(None, reason, detail);
    }
    let mut take = |extension: &str| {
        let at = parts.iter().position(|(e, _)| e == extension)?;
        parts.swap_remove(at).1.ok()
    };
    let (json, text) = (take("json"), take("txt"));
    let mut images = IMAGES.iter().filter_map(|extension| Some((extension, take(extension)?)));
    let image = images.next();
    if let (Some((taken, _)), Some((other, _))) = (&image, images.next()) {
        lose(None, "several images of one name", format!("the .{taken} is taken, not the .{other}"));
    }
    let info = match json.as_deref().map(|json| parse(json, &mut lose)) {
        Some(Err(e)) => return Err(about("broken json", e)),
        Some(Ok(info)) => info,
        None => Info::default(),
    };
    let Some((_, image)) = image else { return Err(about("no image", String::new())) };
    let has_text = text.as_ref().is_some_and(|text| std::str::from_utf8(text).is_ok());
    // Text that is not UTF-8 gives way to the JSON's.
    let caption = match text.map(String::from_utf8) {
        Some(Ok(text)) => Some(text),
        Some(Err(e)) => info.caption.clone().or_else(|| {
            lose(Some("text"), NOT_UTF8, String::new());
            Some(String::from_utf8_lossy(e.as_bytes()).into_owned())
        }),
        None => info.caption.clone(),
    };
    if has_text {
        // What is wrong with the JSON's caption is not what is stored.
        lost.retain(|reject| reject.column.as_deref() != Some("text"));
    }
    let uid = match (&info.uid, &info.url, &caption) {
        (Some(text), ..) => text.parse().map_err(|_| about("not a uid", text.clone()))?,
        (None, None, None) => return Err(about("no uid, url or text", String::new())),
        (None, Some(url), caption) if !url.is_empty() => Uid::of_pair(url, caption.as_deref().unwrap_or("")),
        (None, _, caption) => {
            let shard = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
            Uid::of_sample(&image, caption.as_deref().unwrap_or(""), &key, &shard)
        }
    };
    if image.is_empty() {
        return Err(about("image of zero bytes", String::new()));
    }
    if images::inspect(&image).is_none() {
        return Err(about("not an image", format!("{} bytes", image.len())));
    }
    Ok(Sample { key, uid, image, info: Info { caption, ..info }, lost })
}

const NOT_UTF8: &str = "not UTF-8, replaced by U+FFFD";
const HALF_A_PAIR: &str = "half of a surrogate pair, replaced by U+FFFD";
const WRONG_TYPE: &str = "does not fit the column's type";

/// Reads what tarn keeps of img2dataset's JSON. `lose` is told of each value that is there and cannot be had.
fn parse(bytes: &[u8], lose: &mut dyn FnMut(Option<&str>, &'static str, String)) -> Result<Info, String> {
    let decoded = json::decode(bytes);
    let is_utf8 = matches!(decoded, std::borrow::Cow::Borrowed(_));
    let object = Object::parse(&decoded)?;
    let mut text = |name: &str, column: &str| {
        let mut value = object.get(name)?;
        if value.starts_with('[') {
            let elements = json::elements(value).unwrap_or_default();
            if elements.len() != 1 {
                lose(Some(column), "a list, of which the first is taken", format!("{} elements", elements.len()));
            }
            value = elements.first()?;
        }
        let Some(text) = json::text(value) else {
            lose(Some(column), WRONG_TYPE, value.to_string());
            return None;
        };
        if text.mended {
            lose(Some(column), HALF_A_PAIR, text.text.clone());
        } else if !is_utf8 && text.text.contains(char::REPLACEMENT_CHARACTER) {
            lose(Some(column), NOT_UTF8, text.text.clone());
        }
        Some(text.text)
    };
    let (uid, url, status) = (text("uid", "uid"), text("url", "url"), text("status", "status"));
    let caption = text("caption", "text").or_else(|| text("text", "text"));
    let sha256 = text("sha256", "sha256").filter(|digits| !digits.is_empty());
    let mut digest = [0; 32];
    let sha256 = sha256.and_then(|digits| {
        let whole = hex_decode(&digits, &mut digest);
        if !whole {
            lose(Some("sha256"), "not a SHA-256", digits);
        }
        whole.then_some(digest)
    });
    let mut int = |name: &str| {
        let value = object.get(name)?;
        // Numbers are also written as text.
        let number = json::text(value).map_or_else(|| value.to_string(), |text| text.text).trim().parse::<f64>().ok();
        let number = number.filter(|x| (0.0..=f64::from(i32::MAX)).contains(x));
        if number.is_none() {
            lose(Some(name), WRONG_TYPE, value.to_string());
        }
        number.map(|x| x as i32)
    };
    let (original_width, original_height) = (int("original_width"), int("original_height"));
    let face_bboxes = object.get("face_bboxes").and_then(|value| {
        let boxes = json::elements(value);
        let whole: Vec<[f32; 4]> = boxes.iter().flatten().filter_map(|bbox| face_box(bbox)).collect();
        if boxes.as_ref().is_none_or(|boxes| boxes.len() != whole.len()) {
            lose(Some("face_bboxes"), "not boxes of four finite numbers", value.to_string());
        }
        boxes.map(|_| whole)
    });
    let blurred = object.get("blurred") == Some("true");
    let status = if blurred { Some(images::BLURRED.to_string()) } else { status };
    Ok(Info { has_json: true, uid, url, caption, original_width, original_height, sha256, status, face_bboxes })
}

fn face_box(json: &str) -> Option<[f32; 4]> {
    let numbers = json::elements(json)?.into_iter().map(|x| x.parse::<f32>().ok().filter(|x| x.is_finite()));
    numbers.collect::<Option<Vec<f32>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &[u8]) -> (Info, Vec<String>) {
        let mut lost = Vec::new();
        let info = parse(json, &mut |column, reason, _| lost.push(format!("{}: {reason}", column.unwrap())));
        (info.unwrap(), lost)
    }

    #[test]
    fn pythons_json_is_read() {
        let (info, lost) = parsed(
            br#"{"caption": "a \"NaN\" cat", "original_width": 640.0, "original_height": NaN, "exif": -Infinity,
            "face_bboxes": [[0.1, 0.2, 0.3, 0.4], [1]]}"#,
        );
        assert_eq!(info.caption.as_deref(), Some("a \"NaN\" cat"));
        assert_eq!((info.original_width, info.original_height), (Some(640), None));
        assert_eq!(info.face_bboxes.unwrap(), [[0.1, 0.2, 0.3, 0.4]]);
        assert_eq!(lost, ["face_bboxes: not boxes of four finite numbers"]);
        assert!(parse(b"{\"uid\": ", &mut |_, _, _| ()).is_err());
    }

    #[test]
    fn a_bad_value_costs_itself() {
        let (info, lost) =
            parsed(br#"{"url": 5, "caption": ["one", "two"], "original_width": "640", "original_height": 1e999, "sha256": "zz"}"#);
        assert_eq!((info.url, info.caption.as_deref(), info.original_width), (None, Some("one"), Some(640)));
        let reasons = ["url: does", "text: a list", "sha256: not a", "original_height: does"];
        assert!(lost.len() == 4 && lost.iter().zip(reasons).all(|(lost, reason)| lost.starts_with(reason)), "{lost:?}");
        let (info, lost) = parsed(b"\xef\xbb\xbf{\"caption\": \"caf\xe9\", \"exif\": {\"a\": \"\\udc00\"}, \"n\": 1e999}\0");
        assert_eq!((info.caption.as_deref(), lost), (Some("caf\u{fffd}"), vec![format!("text: {NOT_UTF8}")]));
    }

    #[test]
    fn what_follows_an_archive_costs_nothing_of_it() {
        let picture = {
            let mut bytes = std::io::Cursor::new(Vec::new());
            image::RgbImage::new(8, 8).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            bytes.into_inner()
        };
        let archive = |keys: &[&str]| {
            let mut archive = tar::Builder::new(Vec::new());
            for key in keys {
                for (extension, bytes) in [("png", picture.as_slice()), ("txt", key.as_bytes()), ("mp4", b"a film")] {
                    let mut header = tar::Header::new_gnu();
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, format!("{key}.{extension}"), bytes).unwrap();
                }
            }
            archive.into_inner().unwrap()
        };
        let read = |bytes: &[u8]| {
            let mut out = Vec::new();
            let rejected = each_archive(Box::new(bytes), "x.tar", &mut |sample| {
                out.push(sample.map_or_else(|reject| reject.reason.to_string(), |sample| sample.key));
                true
            });
            out.extend(rejected.err().map(|reject| reject.reason.to_string()));
            out
        };
        let first = archive(&["a", "b"]);
        assert_eq!(read(&first), ["a", "b"]);
        assert_eq!(read(&[&first[..], &archive(&["c"]), &[0; 2048], &archive(&["d"])].concat()), ["a", "b", "c", "d"]);
        assert_eq!(read(&[&first[..], &[0; 700]].concat()), ["a", "b"]);
        for junk in [&b"<html>"[..], &[7; 3000]] {
            assert_eq!(read(&[&first, junk].concat()), ["a", "b", "what follows the archive cannot be read"]);
        }
        assert_eq!(read(&first[..first.len() - 1024 - 600]), ["a", "shard breaks off"]);
    }

    #[test]
    fn a_large_member_costs_a_sample_that_needs_it() {
        let parts = |large: &str| -> Parts {
            let all = [("png", &b"\x89PNG"[..]), ("txt", b"a"), ("mp4", b"")];
            all.map(|(e, bytes)| (e.to_string(), if e == large { Err(1 << 40) } else { Ok(bytes.to_vec()) })).into()
        };
        let reason = |large: &str| sample("k".into(), parts(large), "x.tar").err().map(|reject| reject.reason);
        assert_eq!(reason("png"), Some("member is too large"));
        assert_eq!(reason("mp4"), Some("not an image")); // it was gone on with
    }

    /// What comes out of a shard with members of these names: keys and extensions, or reasons.
    fn groups(names: &[&str]) -> Vec<String> {
        let mut archive = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            archive.append_data(&mut header, name, &b""[..]).unwrap();
        }
        let (bytes, mut out) = (archive.into_inner().unwrap(), Vec::new());
        each_group(&mut tar::Archive::new(bytes.as_slice()), |group| {
            out.push(match group {
                Ok((key, parts)) => format!("{key} {}", parts.into_iter().map(|(e, _)| e).collect::<Vec<_>>().join(" ")),
                Err((key, ..)) => format!("{key} bad"),
            });
            true
        })
        .unwrap();
        out
    }

    #[test]
    fn parts_of_two_samples_are_never_mixed() {
        assert_eq!(groups(&["7.jpg", "7.txt", "7.jpg", "7.txt", "8.jpg"]), ["7 jpg txt", "7 jpg txt", "8 jpg"]);
        assert_eq!(groups(&["7.jpg", "7.JPG", "7.txt", "7.txt"]), ["7 jpg", "7 bad", "7 bad"]);
        assert_eq!(groups(&["7.jpg", "7.txt", "7.txt", "7.jpg"]), ["7 jpg txt", "7 bad"]);
        assert_eq!(groups(&["7.jpg", "7.jpg", "8.jpg", "8.txt", "7.jpg", "7.txt"]), ["7 jpg", "7 jpg", "8 jpg txt", "7 jpg txt"]);
    }
}
