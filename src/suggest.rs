//! "Did you mean …": the nearest known name to one that is not known.

/// The candidate nearest to `name`, or `None` if nothing is near enough to be a likely slip.
///
/// Near is a small edit distance (insertions, deletions, substitutions and swaps of neighbours, with
/// case and `-` against `_` free) or, failing that, a candidate that holds `name` as whole words:
/// `batch_size` finds `per_device_train_batch_size`. Ties go to the earlier candidate.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = normalised(name);
    if name.is_empty() {
        return None;
    }
    let reach = (name.len() / 3).max(1);
    let mut by_edit: Option<(usize, &str)> = None;
    let mut by_words: Option<&str> = None;
    for candidate in candidates {
        let known = normalised(candidate);
        let distance = edit_distance(&name, &known);
        if distance <= reach && by_edit.is_none_or(|(best, _)| distance < best) {
            by_edit = Some((distance, candidate));
        }
        if by_words.is_none() && holds_words(&known, &name) {
            by_words = Some(candidate);
        }
    }
    by_edit.map(|(_, candidate)| candidate).or(by_words)
}

/// `: did you mean \`x\`?` or nothing, to end a message with.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |c| format!("; did you mean `{c}`?"))
}

fn normalised(name: &str) -> Vec<char> {
    let lower = |c: char| {
        if c == '-' {
            '_'
        } else {
            c.to_ascii_lowercase()
        }
    };
    name.trim().chars().map(lower).collect()
}

fn holds_words(text: &[char], words: &[char]) -> bool {
    let edge = |c: Option<&char>| c.is_none_or(|&c| c == '_');
    (0..=text.len().saturating_sub(words.len())).any(|at| {
        text[at..].starts_with(words)
            && edge(at.checked_sub(1).map(|i| &text[i]))
            && edge(text.get(at + words.len()))
    })
}

/// Optimal string alignment: Levenshtein's edits plus the swap of two neighbours.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let mut cost = vec![0; (a.len() + 1) * width]; // (len a + 1, len b + 1)
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            cost[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let substitute = cost[(i - 1) * width + j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let delete = cost[(i - 1) * width + j] + 1;
                let insert = cost[i * width + j - 1] + 1;
                let mut best = substitute.min(delete).min(insert);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(cost[(i - 2) * width + j - 2] + 1);
                }
                best
            };
        }
    }
    cost[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 4] = [
        "learning_rate",
        "max_steps",
        "max_length",
        "train_batch_size",
    ];

    #[test]
    fn finds_a_dropped_swapped_or_wrong_letter() {
        assert_eq!(nearest("learning_rat", KEYS), Some("learning_rate"));
        assert_eq!(nearest("laerning_rate", KEYS), Some("learning_rate"));
        assert_eq!(nearest("max_stebs", KEYS), Some("max_steps"));
        assert_eq!(nearest("Max-Steps", KEYS), Some("max_steps"));
    }

    #[test]
    fn finds_whole_words_inside_a_longer_name() {
        assert_eq!(nearest("batch_size", KEYS), Some("train_batch_size"));
        assert_eq!(nearest("atch_size", KEYS), None);
    }

    #[test]
    fn stays_silent_when_nothing_is_near() {
        assert_eq!(nearest("quantisation", KEYS), None);
        assert_eq!(nearest("", KEYS), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn counts_edits_of_the_empty_name() {
        assert_eq!(edit_distance(&[], &['a', 'b']), 2);
        assert_eq!(edit_distance(&['a', 'b'], &['b', 'a']), 1);
    }
}
