use storage::Pool;
use storage::verify::{Options, State, verify};
use tokio::runtime::Runtime;

use super::block_on;
use crate::cli;
use crate::format::print;
use crate::progress::Meter;
use crate::{Error, Result};

pub(crate) fn run(args: cli::Verify, runtime: &Runtime) -> Result<()> {
    let meter = Meter::new("verify");
    let options = Options { deep: args.deep, repair: args.repair, memory: args.memory };
    let found = block_on(runtime, async {
        let pool = Pool::open(&args.pool).await?;
        verify(&pool, &options, &|progress| meter.show(progress)).await
    });
    meter.finish();
    let (mut text, mut wrong) = (String::new(), 0);
    for finding in found? {
        let state = match finding.state {
            State::Good => "ok",
            State::Note => "note",
            State::Wrong => "WRONG",
            State::Repaired => "repaired",
        };
        wrong += usize::from(finding.state == State::Wrong);
        text += &format!("{state:<9}{:<11}{}\n", finding.check, finding.text);
    }
    print(&text)?;
    if wrong > 0 {
        return Err(Error::NotSound { pool: args.pool, wrong });
    }
    Ok(())
}
