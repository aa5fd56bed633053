// Tiles of int8: vec4 number 2 * q + half has columns 4 * q to 4 * q + 3 of rows 4 * half to 4 * half + 3.
const LANES = 16u;  // threads that share a tile
const QUADS = 1u;  // of columns that each takes
const CODE_VECTORS = 16u;
const UNIT = 1.0;  // what decode's numbers are to be multiplied by
const SCALE_WORDS = 4u;

fn decode(tile: u32, lane: u32) -> array<mat4x4<f32>, QUADS> {
  let w = codes[tile + lane];
  return array<mat4x4<f32>, QUADS>(mat4x4<f32>(
    vec4<f32>(unpack4xI8(w.x)), vec4<f32>(unpack4xI8(w.y)),
    vec4<f32>(unpack4xI8(w.z)), vec4<f32>(unpack4xI8(w.w))));
}

fn scale(at: u32, half: u32) -> vec4<f32> {
  return vec4<f32>(two_f16(scales[at + 2u * half]), two_f16(scales[at + 2u * half + 1u]));
}
