use engine::{Resources, digest};

use crate::Result;
use crate::cli;
use crate::format::print;

pub(crate) fn run(args: cli::Resources) -> Result<()> {
    let resources = Resources::new(args.resources);
    let mut text = String::from("looked for in, the first that has it:\n");
    for folder in resources.folders() {
        text += &format!("    {}\n", folder.display());
    }
    for resource in resources.list() {
        text += &format!("\n{}, for {}\n", resource.name, resource.serves);
        match &resource.path {
            Some(path) if path.is_file() => text += &format!("    found    {}\n    sha256   {}\n", path.display(), digest(path)?),
            Some(path) => text += &format!("    found    {}\n", path.display()),
            None => text += &format!("    missing  get it from: {}\n", resource.how),
        }
    }
    print(&text)
}
