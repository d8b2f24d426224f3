use std::sync::Arc;

use datafusion::logical_expr::Documentation;
use storage::Pool;

use super::{Embed, Sets, all};

/// Stands for a model where only documentation is wanted.
struct NoModel;

impl Embed for NoModel {
    fn text(&self, _: &str, _: Option<&str>) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>> {
        Err("no model".into())
    }

    fn image(&self, _: &str, _: Option<&str>) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>> {
        Err("no model".into())
    }
}

/// The reference of tarn's own functions as Markdown, made from the documentation beside each.
pub fn reference() -> String {
    let model: Arc<dyn Embed> = Arc::new(NoModel);
    let (scalars, aggregates) = all(&Arc::default(), &Arc::new(Sets::of(Pool::at(""))), Some(&model));
    let mut entries: Vec<(String, &Documentation)> = Vec::new();
    entries.extend(scalars.iter().filter_map(|f| Some((f.name().to_string(), f.documentation()?))));
    entries.extend(aggregates.iter().filter_map(|f| Some((f.name().to_string(), f.documentation()?))));
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut text = String::from(
        "# tarn's SQL functions\n\nBeside those of [DataFusion](https://datafusion.apache.org/user-guide/sql/scalar_functions.html). NULL in, NULL out, unless said. In the shell: `SHOW FUNCTIONS`, `\\df`.\n",
    );
    for (_, documentation) in entries {
        text += &format!("\n## `{}`\n\n{}\n\n", documentation.syntax_example, documentation.description);
        for (name, about) in documentation.arguments.iter().flatten() {
            text += &format!("- `{name}`: {about}\n");
        }
        text += &format!("\n```sql\n{}\n```\n", documentation.sql_example.as_deref().unwrap_or_default());
    }
    text
}
