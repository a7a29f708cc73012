// The same source as for AVX-512 without BF16: its flags make the difference.
#include "ops_avx512.cpp"
