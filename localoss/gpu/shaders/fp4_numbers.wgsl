// What decode of a file for MXFP4's codes makes of each code, in the units that it says: for tests and for
// features.py. A row's word has eight codes; `codes` has four rows, out (2, 4, 4): quad of columns, row, column.
@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;  // of the file's other function, which isn't called
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(1)
fn main() {
  let numbers = decode(0u, 0u);
  for (var row = 0u; row < 4u; row++) {
    out[row] = UNIT * numbers[0][row];
    out[4u + row] = UNIT * numbers[1][row];
  }
}
