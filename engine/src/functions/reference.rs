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

/// One of tarn's own functions.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionInfo {
    pub name: String,
    /// `name(arguments)`
    pub syntax: String,
    pub description: String,
    /// Name and meaning.
    pub arguments: Vec<(String, String)>,
    pub example: String,
}

/// tarn's own functions by name, from the documentation beside each.
pub fn function_list() -> Vec<FunctionInfo> {
    let model: Arc<dyn Embed> = Arc::new(NoModel);
    let (scalars, aggregates) = all(&Arc::default(), &Arc::new(Sets::of(Pool::at(""))), Some(&model));
    let info = |name: &str, documentation: Option<&Documentation>| {
        let d = documentation.expect("each function has its documentation");
        FunctionInfo {
            name: name.to_string(),
            syntax: d.syntax_example.clone(),
            description: d.description.clone(),
            arguments: d.arguments.clone().unwrap_or_default(),
            example: d.sql_example.clone().unwrap_or_default(),
        }
    };
    let scalars = scalars.iter().map(|f| info(f.name(), f.documentation()));
    let mut list: Vec<FunctionInfo> = scalars.chain(aggregates.iter().map(|f| info(f.name(), f.documentation()))).collect();
    list.push(embedding());
    list.push(filter());
    list.extend(crate::tables::reference());
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

/// What is expanded before a query is planned is no function of the session.
fn embedding() -> FunctionInfo {
    FunctionInfo {
        name: "embedding".into(),
        syntax: "embedding(uid, column)".into(),
        description: "That sample's vector, a constant where the uid is one, so that \"more like this\" is one query. One uid for the whole query; an error where the pool has no vector for it.".into(),
        arguments: vec![("uid".into(), "A uid, or its text.".into()), ("column".into(), "The name of an embedding column, as text.".into())],
        example: "SELECT uid, text FROM pool ORDER BY cosine_distance(l14_img, embedding('51f492b1c9a539c791dc0ea14b054b69', 'l14_img')) LIMIT 10".into(),
    }
}

fn filter() -> FunctionInfo {
    FunctionInfo {
        name: "filter".into(),
        syntax: "filter(name [, parameter => value]...)".into(),
        description: "The rows of a saved filter, as if it stood there in parentheses: a shipped one by its name, one of yours by its file. Stands where a table stands.".into(),
        arguments: vec![
            ("name".into(), "A shipped filter (`tarn filter --list`), or a file that ends in `.sql`.".into()),
            ("parameter".into(), "A value for one of its parameters; the others have their defaults.".into()),
        ],
        example: "SELECT uid FROM filter('clip_score', fraction => 0.3) INTERSECT SELECT uid FROM filter('mine.sql')".into(),
    }
}

/// The reference of tarn's own functions as Markdown.
pub fn reference() -> String {
    let mut text = String::from(
        "# tarn's SQL functions\n\nBeside those of [DataFusion](https://datafusion.apache.org/user-guide/sql/scalar_functions.html). NULL in, NULL out, unless said. In the shell: `SHOW FUNCTIONS`, `\\df`.\n",
    );
    for function in function_list() {
        text += &format!("\n## `{}`\n\n{}\n\n", function.syntax, function.description);
        for (name, about) in &function.arguments {
            text += &format!("- `{name}`: {about}\n");
        }
        text += &format!("\n```sql\n{}\n```\n", function.example);
    }
    text
}
