//! Metrics by name, and a value for each.

use std::ops::Index;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// What refseg measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Summed intersection over summed union; some papers call it oIoU.
    Ciou,
    /// Mean IoU as the family of the data set defines it.
    Giou,
    /// Mean IoU over expressions.
    Miou,
    /// Expressions whose masks have an IoU above 0.5.
    PrecAt0_5,
    /// Expressions whose masks have an IoU above 0.6.
    PrecAt0_6,
    /// Expressions whose masks have an IoU above 0.7.
    PrecAt0_7,
    /// Expressions whose masks have an IoU above 0.8.
    PrecAt0_8,
    /// Expressions whose masks have an IoU above 0.9.
    PrecAt0_9,
    /// Expressions whose boxes have an IoU above 0.5.
    RecPrecAt0_5,
    /// Expressions without a target that were rejected.
    NAcc,
    /// Expressions with a target that were not rejected.
    TAcc,
}

impl Metric {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 11] = [
        Self::Ciou,
        Self::Giou,
        Self::Miou,
        Self::PrecAt0_5,
        Self::PrecAt0_6,
        Self::PrecAt0_7,
        Self::PrecAt0_8,
        Self::PrecAt0_9,
        Self::RecPrecAt0_5,
        Self::NAcc,
        Self::TAcc,
    ];

    /// Name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ciou => "cIoU",
            Self::Giou => "gIoU",
            Self::Miou => "mIoU",
            Self::PrecAt0_5 => "prec_at_0_5",
            Self::PrecAt0_6 => "prec_at_0_6",
            Self::PrecAt0_7 => "prec_at_0_7",
            Self::PrecAt0_8 => "prec_at_0_8",
            Self::PrecAt0_9 => "prec_at_0_9",
            Self::RecPrecAt0_5 => "rec_prec_at_0_5",
            Self::NAcc => "N_acc",
            Self::TAcc => "T_acc",
        }
    }
}

/// Metrics in per cent; `None`, in JSON null, where there is nothing to count.
pub type Scores = PerMetric<Option<f64>>;

/// A value for each metric, taken by index. In JSON an object with [`Metric::name`] as keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerMetric<T>([T; Metric::ALL.len()]);

impl<T> PerMetric<T> {
    /// Asks for the value of each metric.
    pub fn from_fn(value: impl FnMut(Metric) -> T) -> Self {
        Self(Metric::ALL.map(value))
    }

    /// Metrics with their values, in the order of reports.
    pub fn iter(&self) -> impl Iterator<Item = (Metric, &T)> {
        Metric::ALL.into_iter().zip(&self.0)
    }
}

impl<T> Index<Metric> for PerMetric<T> {
    type Output = T;

    fn index(&self, metric: Metric) -> &T {
        // The order of `Metric::ALL` is that of the variants; a test holds it so.
        &self.0[metric as usize]
    }
}

impl<T: Serialize> Serialize for PerMetric<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (metric, value) in self.iter() {
            map.serialize_entry(metric.name(), value)?;
        }
        map.end()
    }
}
