//! Fewer points that draw the same picture: of every pixel column the first, the least, the largest and
//! the last stay, so that a spike of one update is still there in a log of a hundred thousand.

/// A stretch of a line without a gap in it.
pub type Stretch = Vec<(f64, f64)>;

/// Thins `points` (`x` ascending, in columns of width 1; `y` none where there is a gap) to four a column
/// at most, in stretches that no gap divides.
pub fn thin(points: impl IntoIterator<Item = (f64, Option<f64>)>) -> Vec<Stretch> {
    let mut stretches = Stretches::default();
    let mut column: Option<Column> = None;
    let mut gaps = 0;
    for (x, y) in points {
        match (y, &mut column) {
            (None, _) => gaps += 1,
            (Some(y), Some(column)) if column.holds(x) => column.take(Placed { x, y, gaps }),
            (Some(y), _) => {
                let next = Column::of(Placed { x, y, gaps });
                column
                    .replace(next)
                    .into_iter()
                    .for_each(|c| stretches.add(c));
            }
        }
    }
    column.into_iter().for_each(|c| stretches.add(c));
    stretches.all
}

/// A point, and how many gaps lie before it.
#[derive(Clone, Copy)]
struct Placed {
    x: f64,
    y: f64,
    gaps: usize,
}

struct Column {
    index: f64,
    count: usize,
    /// Each with its number within the column.
    first: (usize, Placed),
    least: (usize, Placed),
    largest: (usize, Placed),
    last: (usize, Placed),
}

impl Column {
    fn of(point: Placed) -> Self {
        let first = (0, point);
        Self {
            index: point.x.floor(),
            count: 1,
            first,
            least: first,
            largest: first,
            last: first,
        }
    }

    fn holds(&self, x: f64) -> bool {
        x.floor() == self.index
    }

    fn take(&mut self, point: Placed) {
        let numbered = (self.count, point);
        self.count += 1;
        if point.y < self.least.1.y {
            self.least = numbered;
        }
        if point.y > self.largest.1.y {
            self.largest = numbered;
        }
        self.last = numbered;
    }
}

#[derive(Default)]
struct Stretches {
    all: Vec<Stretch>,
    gaps: usize,
}

impl Stretches {
    fn add(&mut self, column: Column) {
        let mut kept = [column.first, column.least, column.largest, column.last];
        kept.sort_by_key(|(number, _)| *number);
        let mut before = None;
        for (number, point) in kept {
            if before == Some(number) {
                continue;
            }
            before = Some(number);
            if self.all.is_empty() || self.gaps != point.gaps {
                self.all.push(Stretch::new());
                self.gaps = point.gaps;
            }
            if let Some(stretch) = self.all.last_mut() {
                stretch.push((point.x, point.y));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_of_one_point_survives() {
        let points = (0..100_000).map(|i| {
            let y = if i == 51_234 {
                9.0
            } else {
                f64::from(i % 7) / 7.0
            };
            (f64::from(i) / 100.0, Some(y))
        });
        let stretches = thin(points);
        assert_eq!(stretches.len(), 1);
        assert!(stretches[0].len() <= 4 * 1000, "{}", stretches[0].len());
        assert!(stretches[0].contains(&(512.34, 9.0)));
        assert!(stretches[0].is_sorted_by(|a, b| a.0 <= b.0));
        let ends = (stretches[0][0].0, stretches[0].last().unwrap().0);
        assert_eq!(ends, (0.0, 999.99));
    }

    #[test]
    fn few_points_stay_as_they_are() {
        let points = [(0.0, 1.0), (0.2, 3.0), (0.4, 2.0), (7.0, 2.0)];
        let stretches = thin(points.map(|(x, y)| (x, Some(y))));
        assert_eq!(stretches, [points]);
        assert!(thin([]).is_empty());
        assert!(thin([(0.0, None)]).is_empty());
    }

    #[test]
    fn a_gap_divides_even_within_a_column() {
        let points = [
            (0.1, Some(1.0)),
            (0.2, None),
            (0.3, Some(2.0)),
            (5.0, None),
            (6.0, Some(1.0)),
        ];
        let stretches = thin(points);
        let expected = [vec![(0.1, 1.0)], vec![(0.3, 2.0)], vec![(6.0, 1.0)]];
        assert_eq!(stretches, expected);
    }

    #[test]
    fn alternating_gaps_stay_bounded() {
        let points = (0..100_000).map(|i| (f64::from(i) / 100.0, (i % 2 == 0).then_some(1.0)));
        let kept: usize = thin(points).iter().map(Vec::len).sum();
        assert!(kept <= 4 * 1000, "{kept}");
    }
}
