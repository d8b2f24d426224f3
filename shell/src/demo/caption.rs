use rand::Rng;
use rand::seq::IndexedRandom;

use super::picture::{COLOURS, COUNTS, SHAPES, Scene, TEXTURES};

/// A caption in English that is true of the scene: always its shape and colour, the rest more often than not.
pub(super) fn english(scene: &Scene, rng: &mut impl Rng) -> String {
    let texture = if scene.texture > 0 || rng.random_bool(0.5) { format!("{} ", TEXTURES[scene.texture]) } else { String::new() };
    let (colour, shape) = (COLOURS[scene.colour].0, SHAPES[scene.shape]);
    let thing = format!("{colour} {texture}{shape}");
    let things = match scene.count {
        0 if rng.random_bool(0.5) => format!("one {thing}"),
        0 => format!("{} {thing}", if thing.starts_with('o') { "an" } else { "a" }),
        n => format!("{} {}", COUNTS[n], plural(&thing)),
    };
    let form = ["{}", "a photo of {}", "a picture of {}", "{} on a dark background", "an image with {}", "{}, close up"];
    form.choose(rng).expect("not empty").replace("{}", &things)
}

pub(super) fn plural(thing: &str) -> String {
    if thing.ends_with("ss") { format!("{thing}es") } else { format!("{thing}s") }
}

/// The same in German, French or Spanish.
pub(super) fn foreign(scene: &Scene, rng: &mut impl Rng) -> String {
    const LANGUAGES: [([&str; 6], [&str; 5]); 3] = [
        (
            ["Rot", "Grün", "Blau", "Gelb", "Violett", "Weiß"],
            [
                "ein schöner Kreis in {}",
                "ein Quadrat, hübsch in {}",
                "ein Dreieck in kräftigem {}, größer",
                "ein Ring für dich in {}",
                "ein Kreuz über Grau in {}",
            ],
        ),
        (
            ["rouge", "vert", "bleu", "jaune", "violet", "blanc"],
            [
                "un cercle coloré en {}",
                "un carré coloré en {}",
                "un triangle coloré en {}",
                "un anneau coloré en {}",
                "une croix colorée en {}",
            ],
        ),
        (
            ["rojo", "verde", "azul", "amarillo", "morado", "blanco"],
            [
                "un círculo de color {}",
                "un cuadrado pequeño de color {}",
                "un triángulo de color {}",
                "un anillo, sí, de color {}",
                "una cruz número uno de color {}",
            ],
        ),
    ];
    let (colours, shapes) = LANGUAGES.choose(rng).expect("not empty");
    shapes[scene.shape].replace("{}", colours[scene.colour])
}

/// What stands beside many pictures of the web instead of a caption.
pub(super) fn junk(rng: &mut impl Rng) -> String {
    let n = rng.random_range(1000..10_000);
    match rng.random_range(0..4) {
        0 => format!("IMG_{n}.JPG"),
        1 => format!("DSC{n}"),
        2 => "thumbnail".to_string(),
        _ => format!("Free shipping on orders of {n} or more, click here"),
    }
}
