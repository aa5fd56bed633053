// The KV cache in int8: kernels/kv_store.py says what it keeps. `extra` has EXTRA words for each position and
// head: the keys' low bits, those of channel i at bits 2 * (i % 16) of word i / 16, and the scales' codes of
// keys and of values, a byte for each 16 channels.
const SCALED = true;
alias Quad = u32;

fn from_cache(q: Quad) -> vec4<f32> {
  return vec4<f32>(unpack4xI8(q));
}

// Four channels of a key: `low` has their low bits from bit 0 on.
fn key_from_cache(q: Quad, low: u32) -> vec4<f32> {
  return vec4<f32>((unpack4xI8(q) << vec4<u32>(2u)) | vec4<i32>(vec4<u32>(low, low >> 2u, low >> 4u, low >> 6u) & vec4<u32>(3u)));
}

fn key_to_cache(code: vec4<i32>) -> Quad {
  return pack4xI8(code >> vec4<u32>(2u));
}

fn to_cache(v: vec4<f32>) -> Quad {
  return pack4xI8(vec4<i32>(v));
}
