//! What keeps writers in an object store apart: a key that exists is not written again by who says that it must be new.

use futures::FutureExt;
use futures::future::BoxFuture;
use lance_io::object_store::ObjectStore;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

use crate::{Error, Result};

/// Writes a key of its own under `root` twice, the second time as a new one, and removes it.
///
/// # Errors
/// `NoExclusion` where the second is taken: commits of two writers could be lost there.
pub fn check_exclusion(root: &str) -> BoxFuture<'_, Result<()>> {
    async move {
        let (store, folder) = ObjectStore::from_uri(root).await.map_err(Error::lance(root))?;
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let key = folder.join(format!(".tarn-check-{}-{time}", std::process::id()));
        let failed = |e: object_store::Error| Error::lance(root)(e.into());
        let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let first = store.inner.put_opts(&key, "first".into(), create()).await;
        let second = match &first {
            Ok(_) => store.inner.put_opts(&key, "second".into(), create()).await.map(drop),
            Err(_) => Ok(()),
        };
        let _ = store.inner.delete(&key).await;
        match (first, second) {
            (Err(e @ object_store::Error::NotImplemented { .. }), _) => Err(Error::NoExclusion { path: root.into(), got: e.to_string() }),
            (Err(e), _) => Err(failed(e)),
            (Ok(_), Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })) => Ok(()),
            (Ok(_), Ok(())) => Err(Error::NoExclusion { path: root.into(), got: "a second write of a key that was to be new".into() }),
            (Ok(_), Err(e)) => Err(failed(e)),
        }
    }
    .boxed()
}
