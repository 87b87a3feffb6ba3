//! One chart over updates: lines, dots, bounds and moments in one drawing area. The lines are stretched
//! to whatever size the area gets; text, dots and strokes keep theirs, so that one drawing is readable
//! on a phone and on a wide screen.

use super::Point;
use super::number::short;
use super::scale::{Scale, range};
use super::thin::{Stretch, thin};
use crate::markup::Markup;

/// A chart. See [`Chart::draw`].
#[derive(Clone, Debug)]
pub struct Chart {
    /// Updates at the left and right end.
    pub updates: (f64, f64),
    /// The vertical axis.
    pub scale: Scale,
    /// Height of the drawing area in CSS pixels; the width is whatever there is.
    pub height: f64,
    /// The lines, those behind first.
    pub lines: Vec<Line>,
    /// Horizontal lines: a value and its name.
    pub bounds: Vec<(f64, String)>,
    /// Vertical lines.
    pub moments: Vec<Moment>,
    /// Updates with a mark on the horizontal axis.
    pub marks: Vec<f64>,
}

/// A series of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name, beside its end.
    pub name: String,
    /// The points, updates ascending. One that is not finite is a gap and a cross at the upper edge.
    pub points: Vec<Point>,
    /// Which of the colours, dashes and shapes it has, from 0.
    pub style: usize,
    /// How it is drawn.
    pub look: Look,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Thin and pale, without a name at its end: what another line smooths.
    Faint,
    /// Bold.
    Bold,
    /// Dashed, and with dots where there are few enough.
    Dotted,
}

/// A vertical line.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Where.
    pub update: f64,
    /// Class of its line: `best` or `stop`.
    pub class: &'static str,
    /// What stands above it.
    pub label: Option<String>,
}

/// Extent of the stretched coordinates. Whole numbers are fine enough and short.
const ACROSS: f64 = 2000.0;
const DOWN: f64 = 1000.0;
/// Pixel columns that points are thinned to.
const COLUMNS: f64 = 700.0;
/// Places for crosses, so that a run of nothing but NaN has no hundred thousand of them.
const CROSSES: f64 = 120.0;
/// Dots of a line at most; beyond them the line alone is clearer.
const DOTS: usize = 40;
/// Least distance between the names at the right, in pixels.
const NAME_DISTANCE: f64 = 15.0;
/// Shapes of the dots after the round one, around (0, 0).
const SHAPES: [&str; 4] = [
    "M-3.5-3.5h7v7h-7z",
    "M0-4.6L4.4 3.4H-4.4z",
    "M0-4.8L4.8 0 0 4.8-4.8 0z",
    "M0 4.6L4.4-3.4H-4.4z",
];
/// Colours and dashes that the style sheet has.
const STYLES: usize = 6;

/// How the vertical axis is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Even; spikes of a value or two end at its upper edge.
    Even,
    /// Logarithmic if all values together span two decades, else even.
    Wide,
    /// Without the spikes: logarithmic if the other values span two decades, else even.
    Calm,
}

impl Chart {
    /// A chart of `lines` whose axes hold them and the `bounds`.
    pub fn over(
        updates: (f64, f64),
        lines: Vec<Line>,
        bounds: Vec<(f64, String)>,
        axis: Axis,
    ) -> Self {
        let values: Vec<f64> = lines
            .iter()
            .flat_map(|line| line.points.iter().map(|point| point.1))
            .chain(bounds.iter().map(|bound| bound.0))
            .collect();
        let ceiling = ceiling(&lines, &values);
        let below = |value: &f64| ceiling.is_none_or(|ceiling| *value <= ceiling);
        let calm: Vec<f64> = values
            .iter()
            .copied()
            .filter(below)
            .chain(ceiling)
            .collect();
        let scale = match axis {
            Axis::Even => Scale::linear(calm),
            Axis::Calm => Scale::fitting(calm),
            Axis::Wide => match Scale::fitting(values) {
                log @ Scale::Log { .. } => log,
                Scale::Linear { .. } => Scale::linear(calm),
            },
        };
        Self {
            updates,
            scale,
            height: 200.0,
            lines,
            bounds,
            moments: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// The contents of an SVG element that is as large as the drawing area and lets its axes overflow:
    /// 52 pixels at the left, 30 at the top, 40 at the bottom, 110 at the right for names.
    pub fn draw(&self, svg: &mut Markup) {
        self.draw_axes(svg);
        for (value, _) in &self.bounds {
            self.draw_bound(svg, *value);
        }
        for moment in &self.moments {
            self.draw_moment(svg, moment);
        }
        let view = format!("0 0 {ACROSS} {DOWN}");
        let stretched: &[(&str, &str)] = &[
            ("class", "lines"),
            ("width", "100%"),
            ("height", "100%"),
            ("viewBox", &view),
            ("preserveAspectRatio", "none"),
        ];
        svg.within("svg", stretched, |svg| {
            for line in &self.lines {
                self.draw_line(svg, line);
            }
        });
        for line in &self.lines {
            self.draw_dots(svg, line);
            self.draw_edge(svg, line);
        }
        for (value, name) in &self.bounds {
            self.draw_bound_name(svg, *value, name);
        }
        for &update in &self.marks {
            let (x, class) = (percent(self.across(update)), "checkpoint");
            svg.within(
                "svg",
                &[("x", &x), ("y", "100%"), ("class", class)],
                |svg| {
                    svg.empty("path", &[("d", "M0 0l4 6h-8z")]);
                },
            );
        }
        self.draw_names(svg);
    }

    /// Whether a value lies beyond the upper edge.
    pub fn has_spikes(&self) -> bool {
        let (_, top) = self.scale.ends();
        let mut values = self
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|point| point.1);
        values.any(|y| y.is_finite() && y > top)
    }

    /// Whether a value is not finite.
    pub fn has_gaps(&self) -> bool {
        let mut values = self
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|point| point.1);
        values.any(|y| !y.is_finite())
    }

    /// The lines' names, each beside a piece of its line, for where there is no room at their ends.
    pub fn names(&self, out: &mut Markup) {
        for line in self.lines.iter().filter(|line| line.look != Look::Faint) {
            let finite = line
                .points
                .iter()
                .rev()
                .map(|p| p.1)
                .find(|y| y.is_finite());
            out.within("span", &[], |span| {
                let swatch = [("class", "plot"), ("aria-hidden", "true")];
                span.within("svg", &swatch, |svg| {
                    let class = line_class(line);
                    svg.empty("path", &[("class", &class), ("d", "M0 7h24")]);
                });
                span.element("b", &[], &line.name);
                if let Some(value) = finite {
                    span.text(&format!(" {}", short(value)));
                }
            });
        }
    }

    /// What the chart shows, in words.
    pub fn describe(&self) -> String {
        let lines = self.lines.iter().map(|line| {
            let finite = || line.points.iter().filter(|point| point.1.is_finite());
            let lost = line.points.len() - finite().count();
            let (Some(first), Some(last)) = (finite().next(), finite().next_back()) else {
                return format!("{}: no finite value", line.name);
            };
            let least = finite().fold(first, |a, b| if b.1 < a.1 { b } else { a });
            let largest = finite().fold(first, |a, b| if b.1 > a.1 { b } else { a });
            let lost = match lost {
                0 => String::new(),
                1 => "; 1 value is not finite".to_owned(),
                n => format!("; {n} values are not finite"),
            };
            format!(
                "{}: {} at update {}, {} at update {}; least {} at {}, largest {} at {}{lost}",
                line.name,
                short(first.1),
                first.0,
                short(last.1),
                last.0,
                short(least.1),
                least.0,
                short(largest.1),
                largest.0
            )
        });
        let axis = match self.scale {
            Scale::Linear { .. } => None,
            Scale::Log { .. } => Some("logarithmic axis".to_owned()),
        };
        let bounds = self.bounds.iter().map(|(_, name)| name.clone());
        let moments = self
            .moments
            .iter()
            .filter_map(|moment| moment.label.clone());
        lines
            .chain(bounds)
            .chain(moments)
            .chain(axis)
            .collect::<Vec<_>>()
            .join(". ")
    }

    /// Share of the width at which `update` lies.
    fn across(&self, update: f64) -> f64 {
        let (first, last) = self.updates;
        if last > first {
            (update - first) / (last - first)
        } else {
            0.5
        }
    }

    /// Share of the height at which `value` lies, from the top; what lies beyond an edge is on it.
    fn down(&self, value: f64) -> Option<f64> {
        let place = self.scale.place(value)?;
        Some(1.0 - place.clamp(0.0, 1.0))
    }

    fn draw_axes(&self, svg: &mut Markup) {
        for tick in self.scale.ticks(5) {
            let Some(y) = self.down(tick.value).map(percent) else {
                continue;
            };
            let line = [
                ("class", "grid"),
                ("x1", "0"),
                ("x2", "100%"),
                ("y1", &y),
                ("y2", &y),
            ];
            svg.empty("line", &line);
            let place = [
                ("class", "tick value"),
                ("x", "-8"),
                ("y", &y),
                ("dy", "0.32em"),
            ];
            svg.element("text", &place, &tick.label);
        }
        let (low, high) = self.updates;
        let ticks = Scale::Linear { low, high }.ticks(6);
        let whole = ticks.into_iter().filter(|tick| tick.value.fract() == 0.0);
        for (i, tick) in whole.enumerate() {
            let x = percent(self.across(tick.value));
            let class = if i % 2 == 0 {
                "tick update"
            } else {
                "tick update spare"
            };
            let place = [("class", class), ("x", &x), ("y", "100%"), ("dy", "1.6em")];
            // No update is a fraction, whatever its neighbours' labels need.
            let label = match tick.label.split_once('.') {
                Some((whole, fraction)) if fraction.bytes().all(|b| b == b'0') => whole,
                _ => &tick.label,
            };
            svg.element("text", &place, label);
        }
        let line = [
            ("class", "axis"),
            ("x1", "0"),
            ("x2", "100%"),
            ("y1", "100%"),
            ("y2", "100%"),
        ];
        svg.empty("line", &line);
    }

    fn draw_bound(&self, svg: &mut Markup, value: f64) {
        let Some(y) = self.down(value).map(percent) else {
            return;
        };
        let line = [
            ("class", "bound"),
            ("x1", "0"),
            ("x2", "100%"),
            ("y1", &y),
            ("y2", &y),
        ];
        svg.empty("line", &line);
    }

    fn draw_bound_name(&self, svg: &mut Markup, value: f64, name: &str) {
        let Some(y) = self.down(value).map(percent) else {
            return;
        };
        let place = [("class", "bound-name"), ("x", "4"), ("y", &y), ("dy", "-4")];
        svg.element("text", &place, name);
    }

    fn draw_moment(&self, svg: &mut Markup, moment: &Moment) {
        let share = self.across(moment.update);
        let x = percent(share);
        let class = format!("moment {}", moment.class);
        let line = [
            ("class", &class[..]),
            ("x1", &x),
            ("x2", &x),
            ("y1", "0"),
            ("y2", "100%"),
        ];
        svg.empty("line", &line);
        let Some(label) = &moment.label else { return };
        let anchor = if share < 0.2 {
            "start"
        } else if share > 0.8 {
            "end"
        } else {
            "middle"
        };
        // Two rows, so that two moments side by side are both readable.
        let y = if moment.class == "best" { "-5" } else { "-19" };
        let class = format!("moment-name {}", moment.class);
        let place = [
            ("class", &class[..]),
            ("x", &x),
            ("y", y),
            ("text-anchor", anchor),
        ];
        svg.element("text", &place, label);
    }

    /// The stretches of a line, in columns across and the share down.
    fn stretches(&self, line: &Line) -> Vec<Stretch> {
        let place = |&(x, y): &Point| {
            let down = y.is_finite().then(|| self.down(y)).flatten();
            (self.across(x) * COLUMNS, down)
        };
        thin(line.points.iter().map(place))
    }

    fn draw_line(&self, svg: &mut Markup, line: &Line) {
        let mut path = String::new();
        for stretch in self.stretches(line) {
            path.push('M');
            for (i, &(x, y)) in stretch.iter().enumerate() {
                if i > 0 {
                    path.push(' ');
                }
                path += &format!("{:.0} {:.0}", x / COLUMNS * ACROSS, y * DOWN);
            }
            if stretch.len() == 1 {
                // A line of no length shows as a dot, its ends being round.
                path += "h0";
            }
        }
        let class = line_class(line);
        let fixed = ("vector-effect", "non-scaling-stroke");
        svg.empty(
            "path",
            &[
                ("class", &class),
                ("data-name", &line.name),
                fixed,
                ("d", &path),
            ],
        );
        svg.newline();
    }

    fn draw_dots(&self, svg: &mut Markup, line: &Line) {
        if line.look != Look::Dotted || line.points.len() > DOTS {
            return;
        }
        let class = format!("dot c{}", line.style % STYLES);
        for &(x, y) in line.points.iter().filter(|point| point.1.is_finite()) {
            let Some(y) = self.down(y).map(percent) else {
                continue;
            };
            let x = percent(self.across(x));
            match (line.style % STYLES).checked_sub(2) {
                None => svg.empty(
                    "circle",
                    &[("class", &class), ("cx", &x), ("cy", &y), ("r", "3.5")],
                ),
                Some(i) => svg.within("svg", &[("class", &class), ("x", &x), ("y", &y)], |svg| {
                    svg.empty("path", &[("d", SHAPES[i % SHAPES.len()])]);
                }),
            }
        }
    }

    /// Crosses for what is not finite, and arrows for what lies beyond the axis, the largest with its
    /// value.
    fn draw_edge(&self, svg: &mut Markup, line: &Line) {
        let bins = |is_shown: &dyn Fn(f64) -> bool| {
            let points = line.points.iter().filter(|point| is_shown(point.1));
            let mut places: Vec<f64> = points
                .map(|point| (self.across(point.0) * CROSSES).round())
                .collect();
            places.dedup();
            places
        };
        for place in bins(&|y| !y.is_finite()) {
            let x = percent(place / CROSSES);
            svg.element("text", &[("class", "lost"), ("x", &x), ("y", "12")], "×");
        }
        let (_, top) = self.scale.ends();
        let is_beyond = |y: f64| y.is_finite() && y > top;
        for place in bins(&is_beyond) {
            let x = percent(place / CROSSES);
            svg.within("svg", &[("class", "spike"), ("x", &x)], |svg| {
                svg.empty("path", &[("d", "M0 1l4 7h-8z")]);
            });
        }
        let beyond = line.points.iter().filter(|point| is_beyond(point.1));
        if let Some(&(update, value)) = beyond.max_by(|a, b| a.1.total_cmp(&b.1))
            && line.look != Look::Dotted
        {
            let share = self.across(update);
            let (anchor, dx) = if share > 0.8 {
                ("end", "-8")
            } else {
                ("start", "8")
            };
            let x = percent(share);
            let place = [
                ("class", "spike"),
                ("x", &x),
                ("dx", dx),
                ("y", "10"),
                ("text-anchor", anchor),
            ];
            svg.element("text", &place, &short(value));
        }
    }

    /// Names and last values at the lines' ends, moved apart where they would lie on each other.
    fn draw_names(&self, svg: &mut Markup) {
        let last = |line: &Line| {
            line.points
                .iter()
                .rev()
                .map(|p| p.1)
                .find(|y| y.is_finite())
        };
        let named = self.lines.iter().filter(|line| line.look != Look::Faint);
        let mut names: Vec<(f64, &Line, f64)> = named
            .filter_map(|line| {
                let value = last(line)?;
                Some((self.down(value)? * self.height, line, value))
            })
            .collect();
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        let places = apart(names.iter().map(|name| name.0).collect(), self.height);
        for (y, (_, line, value)) in places.into_iter().zip(names) {
            let class = format!("name c{}", line.style % STYLES);
            let place = [
                ("class", &class[..]),
                ("x", "100%"),
                ("y", &format!("{y:.0}")),
            ];
            svg.within(
                "text",
                &[&place[..], &[("dy", "0.32em")]].concat(),
                |text| {
                    text.text(&abbreviated(&line.name));
                    text.element("tspan", &[("class", "last")], &format!(" {}", short(value)));
                },
            );
        }
    }
}

/// Points of a line below which nothing in it counts as a spike.
const FEW: usize = 10;

/// Where the axis ends if it is not to be flattened by spikes of one or two values: a little above the
/// largest value that is no spike. `None` where there are none, or none that would matter.
fn ceiling(lines: &[Line], values: &[f64]) -> Option<f64> {
    let (low, high) = range(values.iter().copied())?;
    let of_lines = lines
        .iter()
        .flat_map(|line| line.points.iter().map(|point| point.1));
    // The bounds stay in sight.
    let bounds = &values[of_lines.count()..];
    let calm = lines.iter().map(calm_height).chain(bounds.iter().copied());
    let calm = calm.filter(|y| y.is_finite()).reduce(f64::max)?;
    (high / 2.0 - low / 2.0 > 1.25 * (calm - low)).then_some(calm + 0.1 * (calm - low))
}

/// The largest of the medians of five neighbours, and of both ends.
fn calm_height(line: &Line) -> f64 {
    let finite: Vec<f64> = line
        .points
        .iter()
        .map(|p| p.1)
        .filter(|y| y.is_finite())
        .collect();
    if finite.len() < FEW {
        return finite.into_iter().fold(f64::NEG_INFINITY, f64::max);
    }
    let medians = finite.windows(5).map(|five| {
        let mut five = [five[0], five[1], five[2], five[3], five[4]];
        five.sort_by(f64::total_cmp);
        five[2]
    });
    let ends = [finite[0], finite[finite.len() - 1]];
    medians.chain(ends).fold(f64::NEG_INFINITY, f64::max)
}

/// Moves ascending `places` so that neighbours are [`NAME_DISTANCE`] apart and none lies beyond
/// `height`, as far as there is room.
fn apart(mut places: Vec<f64>, height: f64) -> Vec<f64> {
    for i in 1..places.len() {
        places[i] = places[i].max(places[i - 1] + NAME_DISTANCE);
    }
    let mut limit = height;
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - NAME_DISTANCE;
    }
    places
}

fn abbreviated(name: &str) -> String {
    const LONGEST: usize = 13;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    name.chars().take(LONGEST - 1).chain(['…']).collect()
}

fn line_class(line: &Line) -> String {
    let look = match line.look {
        Look::Faint => "faint",
        Look::Bold => "bold",
        Look::Dotted => "dotted",
    };
    format!("line {look} c{}", line.style % STYLES)
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share.clamp(0.0, 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(look: Look, values: &[f64]) -> Line {
        let points = values.iter().zip(1u32..).map(|(&y, x)| (f64::from(x), y));
        Line {
            name: "loss".to_owned(),
            points: points.collect(),
            style: 0,
            look,
        }
    }

    fn draw(lines: Vec<Line>) -> String {
        let last = lines
            .iter()
            .map(|line| line.points.len())
            .max()
            .unwrap_or(0);
        let mut svg = Markup::default();
        Chart::over((1.0, last as f64), lines, Vec::new(), Axis::Calm).draw(&mut svg);
        svg.as_str().to_owned()
    }

    /// The path of the only line.
    fn path(svg: &str) -> &str {
        let (_, rest) = svg.split_once("non-scaling-stroke\" d=\"").unwrap();
        rest.split_once('"').unwrap().0
    }

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let mut svg = Markup::default();
        let mut chart = Chart::over(
            (1.0, 3.0),
            vec![line(Look::Bold, &[4.0, 2.0, 0.0])],
            Vec::new(),
            Axis::Even,
        );
        chart.scale = Scale::Linear {
            low: 0.0,
            high: 4.0,
        };
        chart.draw(&mut svg);
        assert_eq!(path(svg.as_str()), "M0 0 1000 500 2000 1000");
        assert!(svg.as_str().contains("<tspan class=\"last\"> 0</tspan>"));
    }

    #[test]
    fn what_is_not_finite_is_a_gap_and_a_cross() {
        let svg = draw(vec![line(
            Look::Bold,
            &[3.0, 2.5, f64::NAN, 1.0, f64::INFINITY, 0.5],
        )]);
        let path = path(&svg);
        assert_eq!(path.matches('M').count(), 3, "{path}");
        assert_eq!(path.matches("h0").count(), 2, "{path}");
        assert_eq!(svg.matches(">×<").count(), 2);
    }

    #[test]
    fn no_place_is_ever_no_number() {
        let odd: [&[f64]; 6] = [
            &[],
            &[2.0],
            &[f64::NAN, f64::INFINITY],
            &[0.0, 0.0],
            &[1e-300, 1e300, 0.0],
            &[f64::MAX, f64::MIN],
        ];
        for values in odd {
            for look in [Look::Faint, Look::Bold, Look::Dotted] {
                let svg = draw(vec![line(look, values)]);
                assert!(
                    !svg.contains("NaN") && !svg.contains("inf"),
                    "{values:?}: {svg}"
                );
            }
        }
    }

    #[test]
    fn a_log_of_nothing_but_nan_stays_small() {
        let svg = draw(vec![line(Look::Bold, &vec![f64::NAN; 100_000])]);
        assert!(svg.len() < 20_000, "{}", svg.len());
        assert!(svg.contains(">×<"));
    }

    #[test]
    fn a_spike_ends_at_the_edge_with_its_value_and_leaves_the_rest_its_room() {
        let mut values = vec![2.0; 50];
        (values[0], values[30], values[49]) = (5.0, 900.0, 1.0);
        for axis in [Axis::Even, Axis::Calm] {
            let lines = vec![line(Look::Bold, &values)];
            let chart = Chart::over((1.0, 50.0), lines, Vec::new(), axis);
            let (_, top) = chart.scale.ends();
            assert!((5.0..7.0).contains(&top), "{axis:?}: {top}");
            let mut svg = Markup::default();
            chart.draw(&mut svg);
            let labels = svg.as_str().matches(">900</text>").count();
            assert_eq!(labels, 1, "{}", svg.as_str());
        }
        let wide = Chart::over(
            (1.0, 50.0),
            vec![line(Look::Bold, &values)],
            Vec::new(),
            Axis::Wide,
        );
        assert!(wide.scale.ends().1 > 900.0);
    }

    #[test]
    fn a_steep_start_is_no_spike() {
        let values: Vec<f64> = (0..100).map(|i| 1.0 + 9.0 * f64::from(-i).exp()).collect();
        let chart = Chart::over(
            (1.0, 100.0),
            vec![line(Look::Bold, &values)],
            Vec::new(),
            Axis::Calm,
        );
        assert!(chart.scale.ends().1 >= 10.0);
    }

    #[test]
    fn names_at_the_same_height_move_apart() {
        assert_eq!(apart(vec![10.0, 12.0, 100.0], 200.0), [10.0, 25.0, 100.0]);
        assert_eq!(
            apart(vec![198.0, 199.0, 200.0], 200.0),
            [170.0, 185.0, 200.0]
        );
        assert!(apart(Vec::new(), 200.0).is_empty());
    }

    #[test]
    fn the_words_name_ends_extremes_and_gaps() {
        let chart = Chart::over(
            (1.0, 4.0),
            vec![line(Look::Bold, &[3.0, 1.0, f64::NAN, 2.0])],
            Vec::new(),
            Axis::Even,
        );
        assert_eq!(
            chart.describe(),
            "loss: 3 at update 1, 2 at update 4; least 1 at 2, largest 3 at 1; 1 value is not finite"
        );
    }
}
