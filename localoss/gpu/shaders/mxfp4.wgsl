// Tiles of MXFP4: vec4 number 2 * j + half has columns 8 * j to 8 * j + 7 of rows 4 * half to 4 * half + 3.
// In a row's word, byte i has column i in its low nibble and column 4 + i in its high one.
const LANES = 8u;  // threads that share a tile
const QUADS = 2u;  // of columns that each takes
const CODE_VECTORS = 8u;
const SCALE_WORDS = 2u;

// 2^(s - 127), but zero where half of it would be subnormal.
fn scale(at: u32, half: u32) -> vec4<f32> {
  let s = (vec4<u32>(scales[at + half]) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
  return bitcast<vec4<f32>>(select(vec4<u32>(0u), s << vec4<u32>(23u), s > vec4<u32>(1u)));
}
