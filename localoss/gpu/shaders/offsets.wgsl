// What an int8 cache has besides its codes, and how a key's bias is turned to a position: kernels/kv_store.py.
const HALF = HEAD_DIM / 2u;
const QUADS = HEAD_DIM / 4u;
const LOW_WORDS = (HEAD_DIM + 15u) / 16u;
const SCALE_WORDS = (LOW_WORDS + 3u) / 4u;
const KEY_SCALES = LOW_WORDS;
const VALUE_SCALES = LOW_WORDS + SCALE_WORDS;
const EXTRA = VALUE_SCALES + SCALE_WORDS;
const BLOCK = 64u;  // positions that share a turn of their keys' bias
const SCALE_ORIGIN = 832u;  // the upper bits of 2^-23 in float32

fn scale_of(code: u32) -> f32 {
  return bitcast<f32>((code + SCALE_ORIGIN) << 20u);
}

// The code of the least scale that is no less than `needed`.
fn scale_code(needed: f32) -> u32 {
  return clamp((bitcast<u32>(needed) + 0xFFFFFu) >> 20u, SCALE_ORIGIN, SCALE_ORIGIN + 255u) - SCALE_ORIGIN;
}

// Byte `index` of the words of `extra` from `first` on.
fn byte_of(word: u32, index: u32) -> u32 {
  return (word >> (8u * (index % 4u))) & 255u;
}

// A pair of channels, turned by an angle's cosine and sine.
fn turned(pair: vec2<f32>, angle: vec2<f32>) -> vec2<f32> {
  return vec2<f32>(pair.x * angle.x - pair.y * angle.y, pair.y * angle.x + pair.x * angle.y);
}
