use train::encode::{Files, encode};

use super::{device, open_encoder};
use crate::cli;
use crate::progress::Meter;
use crate::{Error, Result, STOP};

pub(crate) fn run(args: cli::Encode) -> Result<()> {
    let files = Files::find(args.images.as_deref(), args.texts.as_deref())?;
    if files.images.is_empty() && files.texts.is_empty() {
        let message = "there is nothing to encode".into();
        return Err(Error::Usage { message, hint: "--images DIR takes jpg, png, webp and gif files, --texts FILE a text a line" });
    }
    let mut encoder = open_encoder(&args.checkpoint, device(&args.compute)?)?;
    let meter = Meter::new("encode");
    let done = encode(&mut encoder, &files, args.normalize, &args.output, &STOP, &|progress| meter.show(progress));
    meter.finish();
    let unreadable = done?;
    for (path, reason) in &unreadable {
        crate::note!("{}: {reason}: its features are NaN", path.display());
    }
    let broken = if unreadable.is_empty() { String::new() } else { format!(" ({} unreadable)", unreadable.len()) };
    let (images, texts) = (files.images.len(), files.texts.len());
    crate::note!("{images} images{broken} and {texts} texts, {} values each: {}", encoder.config().embed_dim, args.output.display());
    Ok(())
}
