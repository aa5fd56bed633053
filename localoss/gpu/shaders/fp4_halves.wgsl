// MXFP4's codes as float16: sign, two bits of exponent and one of mantissa at their places there are 2^-14 of the
// number, 0.5 as a subnormal one. That takes about 3 instructions a code, none of them a conversion from an
// integer, where fp4_integers.wgsl takes 8; and a GPU that keeps subnormal float16 numbers: see features.py.
const UNIT = 16384.0;  // what decode's numbers are to be multiplied by
const SIZES = vec4<u32>(0x0E000E00u);
const SIGNS = vec4<u32>(0x80008000u);

// Four neighbouring columns: those of even number, then those of odd number.
fn four(even: u32, odd: u32) -> vec4<f32> {
  let a = unpack2x16float(even);
  let b = unpack2x16float(odd);
  return vec4<f32>(a.x, b.x, a.y, b.y);
}

fn decode(tile: u32, lane: u32) -> array<mat4x4<f32>, QUADS> {
  let w = codes[tile + lane];
  let a = ((w << vec4<u32>(9u)) & SIZES) | ((w << vec4<u32>(12u)) & SIGNS);  // columns 0 and 2 of each row
  let b = ((w << vec4<u32>(1u)) & SIZES) | ((w << vec4<u32>(4u)) & SIGNS);
  let c = ((w << vec4<u32>(5u)) & SIZES) | ((w << vec4<u32>(8u)) & SIGNS);  // 4 and 6
  let d = ((w >> vec4<u32>(3u)) & SIZES) | (w & SIGNS);
  return array<mat4x4<f32>, QUADS>(
    mat4x4<f32>(four(a.x, b.x), four(a.y, b.y), four(a.z, b.z), four(a.w, b.w)),
    mat4x4<f32>(four(c.x, d.x), four(c.y, d.y), four(c.z, d.z), four(c.w, d.w)));
}
