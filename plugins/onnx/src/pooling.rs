//! From the states of tokens to one vector. Pure.

use crate::card::Pooling;

/// One vector of the states of a row's tokens, `width` numbers each, padding already cut off.
pub fn pool(pooling: Pooling, states: &[f32], width: usize) -> Vec<f32> {
    let mut tokens = states.chunks_exact(width.max(1));
    let Some(first) = tokens.next() else { return vec![0.0; width] };
    let mut vector = first.to_vec();
    match pooling {
        Pooling::Cls => {}
        Pooling::Max => {
            for token in tokens {
                vector.iter_mut().zip(token).for_each(|(most, x)| *most = most.max(*x));
            }
        }
        Pooling::Mean => {
            let count = (states.len() / width) as f32;
            for token in tokens {
                vector.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
            }
            vector.iter_mut().for_each(|sum| *sum /= count);
        }
    }
    vector
}

/// Gives the vector length 1. One of zeros stays as it is.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

/// Numbers that add up to 1.
pub fn softmax(numbers: &mut [f32]) {
    let most = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    numbers.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f32 = numbers.iter().sum();
    numbers.iter_mut().for_each(|x| *x /= sum);
}

/// Each between 0 and 1.
pub fn sigmoid(number: f32) -> f32 {
    1.0 / (1.0 + (-number).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [f32; 6] = [1.0, 5.0, 3.0, 1.0, 2.0, 0.0];

    #[test]
    fn three_ways_to_pool() {
        assert_eq!(pool(Pooling::Mean, &STATES, 2), [2.0, 2.0]);
        assert_eq!(pool(Pooling::Cls, &STATES, 2), [1.0, 5.0]);
        assert_eq!(pool(Pooling::Max, &STATES, 2), [3.0, 5.0]);
        assert_eq!(pool(Pooling::Mean, &[], 2), [0.0, 0.0]);
    }

    #[test]
    fn a_normal_vector_has_length_one() {
        let mut vector = [3.0, 4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = [0.0, 0.0];
        normalise(&mut nothing);
        assert_eq!(nothing, [0.0, 0.0]);
        let mut large = [2e30, 0.0];
        normalise(&mut large);
        assert_eq!(large, [1.0, 0.0], "its square does not fit into f32");
    }

    #[test]
    fn scores_are_probabilities() {
        let mut scores = [1000.0, 1000.0];
        softmax(&mut scores);
        assert_eq!(scores, [0.5, 0.5]);
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!((sigmoid(-1000.0), sigmoid(1000.0)), (0.0, 1.0));
    }
}
