use train::Encoder;

/// One weight vector a class, `[classes, embed_dim]`: the normalised mean of the normalised embeddings of its prompts.
pub(crate) fn classifier(encoder: &mut Encoder, classnames: &[String], templates: &[String]) -> Vec<f32> {
    let dim = encoder.config().embed_dim;
    let mut weights = Vec::with_capacity(classnames.len() * dim);
    for classname in classnames {
        let prompts: Vec<String> = templates.iter().map(|template| template.replace("{c}", classname)).collect();
        let mut features = encoder.encode_texts(&prompts);
        train::normalize_rows(&mut features, dim);
        let mut mean = vec![0.0; dim];
        for feature in features.chunks_exact(dim) {
            mean.iter_mut().zip(feature).for_each(|(m, f)| *m += f / prompts.len() as f32);
        }
        train::normalize_rows(&mut mean, dim);
        weights.extend(mean);
    }
    weights
}
