use std::path::Path;
use std::sync::Arc;

use engine::Filter;
use storage::export::{self, DOWNLOADER_COLUMNS, Summary};
use storage::{Error as StorageError, Pool, Subset, Table};
use tokio::runtime::Runtime;

use super::session::session;
use super::{block_on, open};
use crate::cli::{self, ExportFormat};
use crate::progress::Meter;
use crate::{Error, Result};

pub(crate) fn run(args: cli::Export, runtime: &Runtime) -> Result<()> {
    if args.blur && args.to != ExportFormat::Webdataset {
        return Err(Error::Usage { message: "--blur is for shards".into(), hint: "tarn export POOL SUBSET --to webdataset --blur -o DIR" });
    }
    if !args.columns.is_empty() && args.to != ExportFormat::Parquet {
        return Err(Error::Usage { message: "--columns is for parquet".into(), hint: "tarn export POOL SUBSET --to parquet -o DIR" });
    }
    let meter = Meter::new("export");
    let on_progress = |progress| meter.show(progress);
    let summary = block_on(runtime, async {
        let pool = open(&args.pool, args.at.as_deref()).await?;
        let subset = select(&args, &pool).await?;
        if subset.is_empty() {
            return Err(StorageError::SubsetEmpty.into());
        }
        let columns = columns(&args, &pool).await?;
        let summary = match args.to {
            ExportFormat::Webdataset => export::webdataset(&pool, &subset, &args.output, args.blur, args.overwrite, &on_progress).await,
            _ => export::parquet(&pool, &subset, &columns, &args.output, args.overwrite, &on_progress).await,
        };
        Ok::<_, Error>(summary?)
    });
    meter.finish();
    print(&args, &summary?);
    Ok(())
}

async fn select(args: &cli::Export, pool: &Pool) -> Result<Subset> {
    let path = Path::new(&args.subset);
    if path.extension().is_some_and(|extension| extension == "npy") {
        return Ok(Subset::read(path)?);
    }
    let filter = Filter::resolve(&args.subset)?.bind(&args.params)?;
    let session = session(pool.clone(), &args.queries, Arc::new(Meter::new("select"))).await?;
    Ok(session.subset(&filter).await?.0)
}

async fn columns(args: &cli::Export, pool: &Pool) -> Result<Vec<String>> {
    let table = pool.require(Table::Pool).await?;
    let known: Vec<String> = table.schema().fields.iter().map(|f| f.name.clone()).collect();
    Ok(match args.to {
        ExportFormat::Urls => known.into_iter().filter(|name| DOWNLOADER_COLUMNS.contains(&name.as_str())).collect(),
        _ if !args.columns.is_empty() => args.columns.clone(),
        _ => {
            let is_embedding = |name: &str| table.schema().field(name).is_some_and(|f| f.data_type().to_string().contains("Float16"));
            known.into_iter().filter(|name| !is_embedding(name)).collect()
        }
    })
}

fn print(args: &cli::Export, s: &Summary) {
    let output = args.output.display();
    crate::note!("exported {} samples to {} files, {:.1} MB: {output}", s.samples, s.files, s.bytes as f64 / 1e6);
    if s.not_in_pool + s.no_image > 0 {
        crate::note!("left out {} that are not in the pool and {} that have no image", s.not_in_pool, s.no_image);
    }
    if args.blur {
        crate::note!("blurred faces in {} images; {} could not be decoded and are as they were", s.blurred, s.not_blurred);
    }
    if args.to == ExportFormat::Urls {
        crate::note!(
            "download them with: img2dataset --url_list {output} --input_format parquet --url_col url --caption_col text \
             --save_additional_columns '[\"uid\"]' --bbox_col face_bboxes --verify_hash '[\"sha256\", \"sha256\"]' --output_format webdataset --image_size 512 --resize_mode keep_ratio_largest \
             --resize_only_if_bigger True --output_folder shards"
        );
    }
}
