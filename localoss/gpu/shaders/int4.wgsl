// Tiles of int4: as MXFP4's, but with numbers from -8 to 7 and float16 scales.
const LANES = 8u;  // threads that share a tile
const QUADS = 2u;  // of columns that each takes
const CODE_VECTORS = 8u;
const UNIT = 1.0;  // what decode's numbers are to be multiplied by
const SCALE_WORDS = 4u;

fn signed(n: u32) -> vec4<f32> {
  return vec4<f32>(unpack4xI8(n | ((n & 0x08080808u) * 0x1Eu)));
}

fn decode(tile: u32, lane: u32) -> array<mat4x4<f32>, QUADS> {
  let w = codes[tile + lane];
  let low = w & vec4<u32>(0x0F0F0F0Fu);
  let high = (w >> vec4<u32>(4u)) & vec4<u32>(0x0F0F0F0Fu);
  return array<mat4x4<f32>, QUADS>(
    mat4x4<f32>(signed(low.x), signed(low.y), signed(low.z), signed(low.w)),
    mat4x4<f32>(signed(high.x), signed(high.y), signed(high.z), signed(high.w)));
}

fn scale(at: u32, half: u32) -> vec4<f32> {
  return vec4<f32>(two_f16(scales[at + 2u * half]), two_f16(scales[at + 2u * half + 1u]));
}
