// MXFP4's codes by integers: right on every GPU. See fp4_halves.wgsl.
const UNIT = 0.5;  // what decode's numbers are to be multiplied by

// Four E2M1 numbers, one in the low nibble of each byte, to twice their value.
fn doubled(n: u32) -> vec4<f32> {
  let big = (n >> 2u) & 0x01010101u;
  let t = n & (big * 3u);
  let most = t & (t >> 1u) & 0x01010101u;
  let size = (n & 0x07070707u) + t + (most << 1u);  // 0 1 2 3 4 6 8 12
  let minus = (n >> 3u) & ((size + 0x7F7F7F7Fu) >> 7u) & 0x01010101u;  // not of -0, whose carry would leak
  return vec4<f32>(unpack4xI8((size ^ (minus * 255u)) + minus));
}

fn decode(tile: u32, lane: u32) -> array<mat4x4<f32>, QUADS> {
  let w = codes[tile + lane];
  let low = w & vec4<u32>(0x0F0F0F0Fu);
  let high = (w >> vec4<u32>(4u)) & vec4<u32>(0x0F0F0F0Fu);
  return array<mat4x4<f32>, QUADS>(
    mat4x4<f32>(doubled(low.x), doubled(low.y), doubled(low.z), doubled(low.w)),
    mat4x4<f32>(doubled(high.x), doubled(high.y), doubled(high.z), doubled(high.w)));
}
