//! `kiln image verify --rebuild`: the server bakes the image again elsewhere, and both are compared.

use crate::progress::Progress;
use crate::{Context, Failure, watch};
use kiln_api::Code;
use kiln_api::image::RebuildView;

pub(super) async fn run(context: &Context<'_>, digest: &str) -> Result<(), Failure> {
    let client = context.client()?;
    let mut progress = Progress::start();
    let view = watch::persist("nothing was compared", async || {
        client.rebuild_image(digest).await?.answer(|text| progress.now(text)).await
    })
    .await?;
    drop(progress);
    if view.rebuilt == view.image {
        return context.out().answer(&view, || same(&view));
    }
    let message =
        format!("image {} was baked again and is another one: {}", view.image.short(), view.rebuilt);
    let mut details: Vec<String> = view.difference.iter().cloned().collect();
    details.extend(layers(&view));
    let help = Code::NotReproducible.entry().help;
    Err(Failure::new(Code::NotReproducible, message).details(details).hint(help).document(&view))
}

fn same(view: &RebuildView) -> String {
    let head = format!("image        {}\nbaked again  in {}: the same\n", view.image, view.place);
    layers(view).into_iter().fold(head, |text, line| text + &line + "\n")
}

fn layers(view: &RebuildView) -> Vec<String> {
    let word = |digest: Option<kiln_model::Digest>| digest.map_or_else(|| "none".into(), |d| d.to_string());
    let row = |layer: &kiln_api::image::RebuiltLayer| match layer.expected == layer.found {
        true => format!("layer        {} {} same", word(layer.expected), layer.role),
        false => {
            format!("layer        {} {} is now {}", word(layer.expected), layer.role, word(layer.found))
        }
    };
    view.layers.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_api::image::RebuiltLayer;
    use kiln_model::Digest;

    #[test]
    fn layers_are_told_one_by_one() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let layer = |role: &str, expected, found| RebuiltLayer { role: role.into(), expected, found };
        let view = RebuildView {
            image: a,
            rebuilt: a,
            place: "/dev/shm/x".into(),
            layers: vec![
                layer("base", Some(a), Some(a)),
                layer("app", Some(a), Some(b)),
                layer("more", Some(a), None),
            ],
            difference: None,
        };
        let expected = format!(
            "image        {a}\nbaked again  in /dev/shm/x: the same\nlayer        {a} base same\nlayer        {a} app is now {b}\nlayer        {a} more is now none\n"
        );
        assert_eq!(same(&view), expected);
    }
}
