//! Sources of any bytes, and sound ones of which some are changed: each is read or refused, and nothing worse.

use std::io::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tarn_tests::damaged;

use super::{convert, npz, shard, table};

/// A file of these bytes, for as long as the folder lives.
fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    (folder, path)
}

/// What a writer of files leaves at a path.
fn written(name: &str, write: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join(name));
    std::fs::read(folder.path().join(name)).expect("it was written")
}

fn archive(json: &[u8]) -> Vec<u8> {
    let mut picture = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(4, 4).write_to(&mut picture, image::ImageFormat::Png).expect("a picture");
    let mut archive = tar::Builder::new(Vec::new());
    for key in ["a", "b", "c"] {
        for (extension, bytes) in [("json", json), ("png", picture.get_ref()), ("txt", key.as_bytes())] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, format!("{key}.{extension}"), bytes).expect("written");
        }
    }
    archive.into_inner().expect("written")
}

const JSON: &str = r#"{"uid": "0123456789abcdef0123456789abcdef", "caption": "a \u00e9\ud83d\ude00", "url": "http://a", "original_width": 640,
    "original_height": 480, "face_bboxes": [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]], "sha256": "00", "error_message": null, "exif": "{}"}"#;

const CSV: &str = "uid,text,clip_l14_similarity_score,face_bboxes\n0123456789abcdef0123456789abcdef,\"a, \"\"b\"\"\nc\",0.3,[]\n\
    0123456789abcdef0123456789abcdee,d,nan,\"[[0,0,1,1]]\"\n";

/// Reads a shard, and returns how many samples or rejects come of it.
fn shard_of(name: &str, bytes: &[u8]) -> usize {
    let (_folder, path) = file(name, bytes);
    let mut n = 0;
    let _ = shard::read(&path, |_| {
        n += 1;
        true
    });
    n
}

/// Reads metadata as an ingest does.
fn table_of(name: &str, bytes: &[u8]) {
    let (_folder, path) = file(name, bytes);
    let Ok(header) = table::header(&path) else { return };
    let columns: &[&str] = if header.schema.field_with_name("uid").is_ok() { &["uid"] } else { &["url", "text"] };
    for columns in [Some(columns), None] {
        let Ok(batches) = table::open(&path, columns) else { return };
        for batch in batches {
            let Ok(batch) = batch else { break };
            let _ = convert::uids(&batch);
            for field in batch.schema().fields() {
                let Some(to) = crate::schema::pool_field(field.name()) else { continue };
                if convert::can_convert(field.data_type(), &to) {
                    let _ = convert::column(&batch[field.name().as_str()], &to, &mut Vec::new());
                }
            }
        }
    }
}

fn npz_of(bytes: &[u8]) {
    let (_folder, path) = file("x.npz", bytes);
    let Ok((arrays, _)) = npz::arrays(&path) else { return };
    let Ok(mut npz) = npz::Npz::open(&path, &arrays) else { return };
    let rows = npz.rows_left().min(3);
    let mut outs: Vec<Vec<u8>> = arrays.iter().map(|array| vec![0; rows as usize * array.dim as usize * 2]).collect();
    let mut outs: Vec<&mut [u8]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
    let _ = npz.read(rows, &mut outs).and_then(|()| npz.skip(npz.rows_left()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shards(bytes in damaged(archive(JSON.as_bytes()))) {
        shard_of("x.tar", &bytes);
    }

    #[test]
    fn compressed_shards(zst in damaged(zstd::encode_all(&archive(JSON.as_bytes())[..], 3).expect("packed")), gz in damaged({
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(&archive(JSON.as_bytes())).expect("packed");
        gz.finish().expect("packed")
    })) {
        shard_of("x.tar.zst", &zst);
        shard_of("x.tar.gz", &gz);
    }

    #[test]
    fn json_of_samples(json in damaged(JSON.as_bytes().to_vec())) {
        // Whatever it says, it costs no other sample, and these all say the same.
        prop_assert_eq!(shard_of("x.tar", &archive(&json)), 3);
    }

    #[test]
    fn csv(bytes in damaged(CSV.as_bytes().to_vec())) {
        table_of("x.csv", &bytes);
    }

    #[test]
    fn parquet(bytes in damaged(written("x.parquet", |path| tarn_tests::write_metadata(path, &tarn_tests::rows())))) {
        table_of("x.parquet", &bytes);
    }

    #[test]
    fn embeddings(bytes in damaged(written("x.npz", |path| tarn_tests::write_embeddings(path, &[("a", 4, vec![1.0; 32]), ("b", 2, vec![0.5; 16])])))) {
        npz_of(&bytes);
        let (_folder, path) = file("x.npz", &bytes);
        let _ = crate::vectors::read_array(&path, Some("a"));
    }

    #[test]
    fn arrays(bytes in damaged(npy("<f4", "(4, 2)", 32)), subset in damaged(npy("[('f0', '<u8'), ('f1', '<u8')]", "(2,)", 32))) {
        let (_folder, path) = file("x.npy", &bytes);
        let _ = crate::vectors::read_array(&path, None);
        let (_folder, path) = file("y.npy", &subset);
        let _ = crate::Subset::read(&path);
        let (folder, path) = file("z.npy", &[7; 32]);
        std::fs::write(folder.path().join("z.weights.npy"), &bytes).expect("written");
        let _ = crate::Subset::read(&path);
        let (_folder, path) = file("r.json", &bytes);
        let _ = crate::Receipt::read(&path);
    }
}

/// A `.npy` of this type and shape, with as many bytes of data.
fn npy(descr: &str, shape: &str, data: usize) -> Vec<u8> {
    let descr = if descr.starts_with('[') { descr.to_string() } else { format!("'{descr}'") };
    let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n");
    [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), &vec![1; data]].concat()
}
