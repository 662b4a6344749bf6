//! What somebody may have meant by a name that there is not.

/// Names this alike are worth mentioning (0 to 1, Jaro–Winkler).
const ALIKE: f64 = 0.8;
/// How much less alike than the best one another may be to be mentioned, too.
const AS_ALIKE: f64 = 0.05;
/// Most names that are mentioned.
const MOST: usize = 3;

/// The names most like this one, the likest first; none where nothing is like it.
pub(crate) fn near<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let scored = names.into_iter().map(|known| (strsim::jaro_winkler(name, known), known));
    let mut alike: Vec<(f64, &str)> = scored.filter(|(score, _)| *score >= ALIKE).collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best = alike.first().map_or(0.0, |(score, _)| *score);
    alike
        .into_iter()
        .take(MOST)
        .take_while(|(score, _)| best - score <= AS_ALIKE)
        .map(|(_, name)| name)
        .collect()
}

/// `Did you mean a or b?`
#[cfg(any(feature = "server", test))]
pub(crate) fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let near = near(name, names);
    (!near.is_empty()).then(|| format!("Did you mean {}?", near.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_mentioned_nearest_first() {
        let names = ["media", "mail", "medium", "default"];
        for (name, expected) in [
            ("medi", Some("Did you mean media or medium?")),
            ("meida", Some("Did you mean media?")),
            ("defautl", Some("Did you mean default?")),
            ("xyz", None),
        ] {
            assert_eq!(did_you_mean(name, names).as_deref(), expected, "{name}");
        }
        assert_eq!(did_you_mean("media", []), None);
    }
}
