$( Quantifiers, to have variables that must be distinct. Written for the tests; no rights reserved. $)

$[ propositional.mm $]

$c A. = setvar $.
$v x y z $.
vx $f setvar x $.
vy $f setvar y $.
vz $f setvar z $.
weq $a wff x = y $.
wal $a wff A. x ph $.
ax-4 $a |- ( A. x ph -> ph ) $.
${
  $d x ph $.
  ax-5 $a |- ( ph -> A. x ph ) $.
$}

${
  $d x y $.  $d x z $.
  still $p |- ( y = z -> A. x y = z ) $= vy vz weq vx ax-5 $.
  $( The variable x is a dummy: neither the theorem nor a hypothesis has it. $)
  again $p |- ( y = z -> y = z ) $=
    ( vx weq wal ax-5 ax-4 syl ) ABDZICEIICFICGH $.
$}
${
  $d x y ph $.
  nested $p |- ( ph -> A. x A. y ph ) $=
    ( wal ax-5 syl ) AACDZGBDACEGBEF $.
$}
${
  $v t $.
  vt $f setvar t $.
  $d t x y $.
  local $p |- ( x = y -> A. t x = y ) $= ( weq ax-5 ) ABDCE $.
$}
${
  $v t $.
  vt2 $f setvar t $.
  $d t y $.
  $( Here t is distinct from y only, and stands on both sides. $)
  other $p |- ( t = t -> A. y t = t ) $= ( weq ax-5 ) BBCAD $.
$}
