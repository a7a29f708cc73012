// The same source as for AVX-512 with BF16, and products by the matrix unit: its flags make the difference.
#include "ops_avx512.cpp"
